"""Stop: what the guest wrote just before is on its disks; where it can't be, the result says so."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

import ramet
from ramet.model import protocols
from ramet.model.schema import Instance
from tests.conftest import SHORTLY
from tests.support.ready import Ready

pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.timeout(500)]


async def write(vm: protocols.VM, word: str) -> None:
    """Into the guest's page cache: nobody syncs it."""
    await vm.exec("sh", "-c", f"echo {word} > /data/{word}", check=True)


async def written(vm: protocols.VM) -> list[str]:
    await vm.start()
    return sorted(
        (await vm.exec("sh", "-c", "cat $(ls -p -d /data/* | grep -v /$)", check=True)).text.split()
    )


def on_disk(vm: ramet.VM, word: str) -> bool:
    """Whether what `write` wrote has reached a file of its disk."""
    line = f"{word}\n".encode()
    return any(line in path.read_bytes() for path in vm.directory.glob("disk-*.qcow2"))


async def test_paused_and_standby_are_powered_off(host: ramet.Host, ready: Ready) -> None:
    vm = await ready(host, name="box", disks=("16M:/data",))
    await write(vm, "paused")
    await vm.pause()
    stopped = await vm.stop()
    assert (stopped.state, stopped.reason) == ("stopped", None)
    assert await written(vm) == ["paused"]
    await write(vm, "standby")
    await vm.pause()
    await vm.standby()
    stopped = await vm.stop()
    assert (stopped.state, stopped.reason) == ("stopped", None)
    assert await written(vm) == ["paused", "standby"]
    # At once is at once: what is lost is said, by the library and by the command.
    await write(vm, "lost")
    command = [sys.executable, "-m", "ramet.cli.main", "stop", "--timeout", "0", "box"]
    done = await anyio.run_process(
        command, env={**os.environ, "RAMET_HOME": str(host.home)}, stderr=subprocess.PIPE
    )
    assert b"killed" in done.stderr
    assert b"is lost" in done.stderr
    assert "killed" in str((await vm.info()).reason)
    assert (on_disk(vm, "standby"), on_disk(vm, "lost")) == (True, False)
    other = await ready(host, disks=("16M:/data",))
    await other.standby()
    stopped = await other.stop(timeout=0)
    assert stopped.state == "stopped"
    assert "memory was given up" in str(stopped.reason)


async def test_a_capture_that_cannot_be_restored_isnt_thrown_away(host: ramet.Host, ready: Ready) -> None:
    vm = await ready(host, name="box", disks=("16M:/data",))
    await write(vm, "unsynced")
    await vm.standby()
    vmstate = vm.directory / "vmstate"
    content = vmstate.read_bytes()
    vmstate.chmod(0o600)
    vmstate.write_bytes(content[:-1])
    with pytest.raises(ramet.RametError, match="can't be restored to be powered off") as caught:
        await vm.stop()
    assert "--timeout 0" in str(caught.value.hint)
    assert (await vm.info()).state == "standby"
    assert (await vm.stop(timeout=0)).state == "stopped"


async def stubborn(vm: protocols.VM) -> None:
    """With a process that doesn't go when it is asked: the agent gives it two seconds."""
    await vm.spawn("sh", "-c", "trap '' TERM; touch /tmp/ready; while :; do sleep 1; done")
    with anyio.fail_after(30):
        while not (await vm.exec("test", "-e", "/tmp/ready")).ok:
            pass


async def stop(vm: protocols.VM, limit_s: float) -> Instance:
    with anyio.fail_after(limit_s + 30):
        return await vm.stop(timeout=limit_s)


async def test_one_that_had_to_be_killed_says_why(warm: protocols.VM) -> None:
    async with warm.fork(4) as (deaf, hung, stalled, fine):
        await deaf.spawn(*SHORTLY, "halt", "-f")
        await stubborn(hung)
        with anyio.fail_after(60):
            while b"System halted" not in await deaf.logs():
                await anyio.sleep(0.1)
        stopped = await stop(deaf, 1)
        assert "killed: its guest couldn't be asked to power off" in str(stopped.reason)
        assert "System halted" in str(stopped.reason)
        stopped = await stop(hung, 0.7)
        assert "killed: it didn't power off within 0.7 s" in str(stopped.reason)
        stalled_pid = (await stalled.info()).pid
        assert stalled_pid is not None
        os.kill(stalled_pid, signal.SIGSTOP)
        stopped = await stop(stalled, 1)
        assert "killed: its guest" in str(stopped.reason)
        assert (await stop(fine, 10)).reason is None


async def test_a_paused_guest_whose_vmm_hangs(warm: protocols.VM) -> None:
    async with warm.fork(1) as (vm,):
        await vm.pause()
        pid = (await vm.info()).pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        stopped = await stop(vm, 1)
        assert stopped.state == "stopped"
        assert "killed" in str(stopped.reason)
        assert not Path(f"/proc/{pid}").exists()


async def test_the_vmm_dies_while_its_guest_powers_off(warm: protocols.VM) -> None:
    async with warm.fork(1) as (vm,):
        await stubborn(vm)
        pid = (await vm.info()).pid
        assert pid is not None

        async def kill() -> None:
            await anyio.sleep(1)
            os.kill(pid, signal.SIGKILL)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(kill)
            stopped = await stop(vm, 20)
        assert stopped.state == "stopped"
        assert "the VMM died" in str(stopped.reason)
