"""One instance's life: booted, stopped, started, paused, rebooted, killed, left behind, removed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import anyio
import pytest

import ramet
from ramet.model import protocols
from ramet.system import process_ref, processes
from tests.conftest import SHORTLY, living_in

pytestmark = [pytest.mark.vm, pytest.mark.anyio]


async def state_of(vm: protocols.VM) -> str:
    return (await vm.info()).state


@pytest.mark.core
async def test_stop_start_and_remove(host: ramet.Host) -> None:
    vm = await host.run(name="one", memory="128M", labels={"team": "x"})
    before = await vm.info()
    assert (before.state, before.forks, before.parent, before.generation) == ("running", 0, None, 1)
    machine_id = (await vm.exec("cat", "/etc/machine-id", check=True)).text
    await vm.exec("touch", "/tmp/mark", check=True)
    with pytest.raises(ramet.WrongStateError, match="rm -f one"):
        await vm.remove()
    await vm.stop()
    after = await vm.info()
    assert (after.state, after.pid) == ("stopped", None)
    assert living_in(host.home) == []
    with pytest.raises(ramet.WrongStateError, match="ramet start one"):
        await vm.exec("true")
    assert await host.list() == []
    assert [instance.name for instance in await host.list(everything=True, labels={"team": "x"})] == ["one"]
    await vm.start()
    assert (await vm.exec("cat", "/etc/machine-id", check=True)).text == machine_id
    assert not (await vm.exec("test", "-e", "/tmp/mark")).ok, "memory is gone after a stop"
    await vm.remove(force=True)
    with pytest.raises(ramet.NotFoundError):
        await vm.info()
    with pytest.raises(ramet.NotFoundError, match="one"):
        await host.get("one")


async def test_a_template_is_fork_only(warm: protocols.VM) -> None:
    for move in (warm.start, warm.restore, warm.resume, warm.pause, warm.stop, warm.template):
        with pytest.raises(ramet.WrongStateError, match=r"warm is a template.*ramet fork warm") as caught:
            await move()
        assert caught.value.exit_code == 4
    assert await state_of(warm) == "template"


@pytest.mark.timing
async def test_a_guest_that_powers_off_is_stopped(warm: protocols.VM) -> None:
    async with warm.fork(1) as (vm,):
        await vm.spawn(*SHORTLY, "poweroff")
        with anyio.fail_after(30):
            await vm.wait()
        info = await vm.info()
        assert (info.state, info.reason) == ("stopped", "the guest powered off")


async def test_a_fork_that_reboots_is_started_cold(warm: protocols.VM) -> None:
    """Its BIOS isn't in the mem-file: QEMU leaves, and the engine starts the instance cold, under its own
    identity.
    """
    async with warm.fork(1) as (vm,):
        pid, machine_id = (await vm.info()).pid, vm.receipt.identity.machine_id
        await vm.spawn(*SHORTLY, "reboot")
        assert pid is not None
        with anyio.fail_after(90):
            await processes.wait_ended(process_ref.reference(pid))
        said = await vm.exec(
            "sh", "-c", "cat /etc/machine-id; hostname; test -e /tmp/data || echo cold", check=True
        )
        assert said.text.split() == [machine_id, vm.name, "cold"]
        assert (await vm.info()).pid != pid


# A reboot is one cold start, whatever the instance came from: a fork's is above.
@pytest.mark.deep
async def test_a_booted_instance_that_reboots_comes_up_as_itself(host: protocols.Host) -> None:
    vm = await host.run(name="again", memory="128M")
    pid = (await vm.info()).pid
    assert pid is not None
    before = await vm.exec("cat", "/etc/machine-id", "/etc/hostname", check=True)
    await vm.exec("touch", "/tmp/mark", check=True)
    await vm.spawn(*SHORTLY, "reboot")
    with anyio.fail_after(90):
        await processes.wait_ended(process_ref.reference(pid))
        after = await vm.exec("cat", "/etc/machine-id", "/etc/hostname", check=True)
    assert after.text == before.text
    assert not (await vm.exec("test", "-e", "/tmp/mark")).ok
    assert (await vm.info()).pid != pid


@pytest.mark.timing
async def test_a_command_under_way_in_a_guest_that_reboots_ends_with_an_error(warm: protocols.VM) -> None:
    async with warm.fork(1) as (vm,):
        with anyio.fail_after(60), pytest.raises(ramet.VmmError, match=vm.name):
            await vm.exec("sh", "-c", "reboot; sleep 300")


@pytest.mark.proves("I6")
async def test_a_killed_vmm_is_failed_and_can_be_started_again(warm: protocols.VM) -> None:
    async with warm.fork(2) as (vm, sibling):
        pid = (await vm.info()).pid
        assert pid is not None
        await processes.kill(process_ref.reference(pid))
        info = await vm.info()
        assert (info.state, info.pid) == ("failed", None)
        assert "died" in (info.reason or "")
        with pytest.raises(ramet.WrongStateError, match="failed"):
            await vm.exec("true")
        assert (await sibling.exec("true")).ok
        await vm.stop()
        await vm.start()
        assert (await vm.exec("true")).ok


@pytest.mark.timing
async def test_a_vmm_that_dies_under_an_exec_is_an_error_at_once(warm: protocols.VM) -> None:
    async with warm.fork(1) as (vm,):
        pid = (await vm.info()).pid
        assert pid is not None

        async def shoot() -> None:
            await anyio.sleep(0.5)
            await processes.kill(process_ref.reference(pid))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(shoot)
            with anyio.fail_after(20), pytest.raises(ramet.VmmError, match=vm.name):
                await vm.exec("sleep", "60")


KILLED_OWNER = """
import os, sys, anyio, ramet
async def main():
    async with ramet.Host(sys.argv[1]) as host:
        base = await host.get("warm")
        await base.fork(2, name="orphan")
        print("made", flush=True)
        os.kill(os.getpid(), 9)
anyio.run(main)
"""


async def test_the_next_process_removes_what_a_killed_script_left(warm_home: Path) -> None:
    done = await anyio.run_process(
        [sys.executable, "-c", KILLED_OWNER, str(warm_home)], check=False, stderr=None
    )
    assert (done.returncode, done.stdout) == (-9, b"made\n")
    assert len(living_in(warm_home)) == 2
    async with ramet.Host(warm_home) as host:
        assert [instance.name for instance in await host.list(everything=True)] == ["warm"]
    assert living_in(warm_home) == []
    assert len(list((warm_home / "instances").iterdir())) == 1


async def test_detached_ones_stay_and_auto_remove_ones_go(warm_home: Path, home: Path) -> None:
    async with ramet.Host(home) as host:
        gone = await host.run(name="gone", memory="128M", auto_remove=True)
        await gone.detach()
        (stays,) = await gone.fork(1, name="stays")
        await stays.detach()
    async with ramet.Host(home) as host:
        assert [instance.name for instance in await host.list()] == ["gone", "stays"]
        await (await host.get("gone")).stop()
        assert [instance.name for instance in await host.list(everything=True)] == ["stays"]
        await (await host.get("stays")).remove(force=True)


async def test_sizes_and_names_that_cannot_be(host: protocols.Host) -> None:
    cases: list[dict[str, str | int]] = [
        {"memory": "16M"},
        {"memory": "999T"},
        {"memory": "lots"},
        {"cpus": 0},
        {"name": "not legal"},
    ]
    for arguments in cases:
        with pytest.raises(ramet.UsageError):
            await host.run(**arguments)  # type: ignore[arg-type]
    with pytest.raises(ramet.NotFoundError, match="builtin"):
        await host.run("bultin")
    assert await host.list(everything=True) == []


async def test_a_name_is_taken_once(warm_host: protocols.Host) -> None:
    with pytest.raises(ramet.NameTakenError) as caught:
        await warm_host.run(name="warm", memory="128M")
    assert caught.value.exit_code == 7


async def test_missing_qemu_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAMET_QEMU", "no-such-qemu")
    async with ramet.Host(home) as host:
        with pytest.raises(ramet.UnavailableError, match="no-such-qemu") as caught:
            await host.run()
        assert caught.value.exit_code == 5


def test_imports_do_not_need_a_machine() -> None:
    """`import ramet` starts nothing and loads no driver."""
    code = "import sys, ramet; assert 'qemu.qmp' not in sys.modules, 'heavy'"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
