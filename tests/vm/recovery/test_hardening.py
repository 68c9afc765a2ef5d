"""What went wrong once, or would have: each of these failed before it was mended."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path

import anyio
import msgspec
import pytest

import ramet
from ramet.engine.lifecycle.removal import destroy_all, gc
from ramet.errors import RametError
from ramet.guest.ports import claim_port
from ramet.paths import MEM_FILE
from ramet.store.records import Store
from ramet.system import liveness, process_ref, processes, sockets, spawn
from tests.conftest import SHORTLY, living_in

pytestmark = pytest.mark.anyio


async def test_no_descriptors_left_does_not_look_like_death() -> None:
    alive = process_ref.this_process()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, limits[1]))
    held = []
    try:
        try:
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            pass
        with pytest.raises(ramet.UnavailableError, match="open files"):
            liveness.is_alive(alive)
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert liveness.is_alive(alive)


@pytest.mark.timing
async def test_a_strangers_shell_in_an_instance_directory_is_left_alone(tmp_path: Path) -> None:
    directory = tmp_path / "instances" / "0123456789ab"
    directory.mkdir(parents=True)
    stranger = subprocess.Popen(["sleep", "60"], cwd=directory)
    ours = spawn.spawn(["sleep", "60"], directory=directory, log=directory / "vmm.log")
    try:
        with anyio.fail_after(10):
            # execve(2) closes the pipe that Popen waits for a moment before the new environment can be read.
            while not spawn.spawned_in(directory):
                await anyio.sleep(0.001)
        await gc([directory])
        assert stranger.poll() is None
        assert not liveness.is_alive(ours)
        assert not directory.exists()
    finally:
        stranger.kill()
        stranger.wait()


async def test_a_child_that_ended_before_anyone_looked_is_no_zombie(tmp_path: Path) -> None:
    child = spawn.spawn(["true"], directory=tmp_path, log=tmp_path / "log")
    await processes.wait_ended(child, timeout_s=10)
    await processes.kill(child)
    assert not Path(f"/proc/{child.pid}").exists()


async def test_a_full_listening_queue_does_not_stop_the_loop(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_PATH)
    listener = sockets.listen(descriptor, "x.sock")
    os.close(descriptor)
    connections = []
    with pytest.raises(BlockingIOError):
        for _ in range(50):
            connections.append(sockets.connect(tmp_path, "x.sock"))
    for connection in [*connections, listener]:
        connection.close()


@pytest.mark.timing
@pytest.mark.vm
async def test_a_home_behind_a_symbolic_link(warm_home: Path, tmp_path: Path) -> None:
    link = tmp_path / "home"
    link.symlink_to(warm_home)
    async with ramet.Host(link) as host:
        warm = await host.get("warm")
        async with anyio.create_task_group() as tasks:

            async def cancel_after_the_first() -> None:
                while not living_in(warm_home):
                    await anyio.sleep(0.01)
                tasks.cancel_scope.cancel()

            tasks.start_soon(cancel_after_the_first)
            await warm.fork(8)
        assert living_in(warm_home) == []
        assert [path.name for path in (warm_home / "instances").iterdir()] == [warm.id]


@pytest.mark.vm
async def test_a_discard_by_a_stale_record_ends_the_vmm_of_today(warm: ramet.VM, warm_home: Path) -> None:
    (vm,) = await warm.fork(1)
    stale = vm._context.store.get(vm.id)
    await vm.standby()
    await vm.restore()
    await destroy_all(vm._context, [stale])
    assert living_in(warm_home) == []


@pytest.mark.vm
async def test_recovery_spares_what_was_detached_meanwhile(warm: ramet.VM, warm_home: Path) -> None:
    """Recovery reads that an instance's owner is dead; by the time it acts, the instance has been
    detached.
    """
    from ramet.engine import recovery

    (vm,) = await warm.fork(1)
    context = vm._context
    gone = spawn.spawn(["true"], directory=warm_home, log=warm_home / "log")
    await processes.wait_ended(gone, timeout_s=10)
    read = context.store.change(vm.id, lambda row: msgspec.structs.replace(row, owner=gone))
    await vm.detach()
    await recovery._recover_instance(context, read)
    assert (await vm.exec("true")).ok
    await vm.remove(force=True)
    (warm_home / "log").unlink()


@pytest.mark.timing
@pytest.mark.vm
async def test_one_instances_trouble_is_not_its_hosts(warm: ramet.VM) -> None:
    """A guest reboots and can't be started again: it is failed and says why; the Host and the sibling go
    on.
    """
    vm, sibling = await warm.fork(2)
    obstacle = vm.directory / f".tmp-{MEM_FILE}"
    obstacle.mkdir()
    await vm.spawn(*SHORTLY, "reboot")
    with anyio.fail_after(60):
        while (await vm.info()).state != "failed":
            await anyio.sleep(0.05)
    assert "couldn't be started again" in str((await vm.info()).reason)
    assert (await sibling.exec("true")).ok


@pytest.mark.vm
async def test_a_log_that_cannot_be_cut_does_not_close_the_home(warm: ramet.VM, warm_home: Path) -> None:
    async with warm.fork(1) as (vm,):
        (vm.directory / "console.log.1.tmp").mkdir()
        (vm.directory / "console.log.1").mkdir()
        os.truncate(vm.directory / "console.log", 3 << 20)
        async with ramet.Host(warm_home) as other:
            assert len(await other.list()) == 2


@pytest.mark.vm
async def test_a_guest_that_stalls_cannot_hold_an_exec(
    warm: ramet.VM, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ramet.engine import limits
    from ramet.engine.exec import commands

    monkeypatch.setattr(commands, "BACKSTOP_S", 0.5)
    monkeypatch.setattr(limits, "ASK_S", 0.5)
    async with warm.fork(1) as (vm,):

        async def freeze() -> None:
            await vm.exec("sh", "-c", "until [ -e /tmp/begun ]; do sleep 0.1; done", check=True)
            await vm._context.vmm(vm._record).pause()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(freeze)
            with anyio.fail_after(30), pytest.raises(ramet.ExecTimeoutError):
                await vm.exec("sh", "-c", "> /tmp/begun; exec sleep 60", timeout=3)


@pytest.mark.timing
@pytest.mark.vm
async def test_cancelled_requests_of_a_stalled_guest_hold_no_ports(warm: ramet.VM, warm_home: Path) -> None:
    async with warm.fork(1) as (vm,):
        record = vm._record
        await vm._context.vmm(record).pause()
        for _ in range(10):
            with anyio.move_on_after(0.1):
                await vm.exec("true")
        await vm._context.vmm(record).resume()
        # Another process, which knows nothing of this one's connections, gets a port at once.
        code = (
            "import sys, anyio, ramet\n"
            "async def main():\n"
            "    async with ramet.Host(sys.argv[1]) as host:\n"
            "        print((await (await host.get(sys.argv[2])).exec('echo', 'free')).text)\n"
            "anyio.run(main)"
        )
        done = await anyio.run_process([sys.executable, "-c", code, str(warm_home), vm.id], check=False)
        assert done.stdout.split() == [b"free"], done.stderr


@pytest.mark.timing
@pytest.mark.vm
async def test_a_short_wait_does_not_shorten_anothers(warm: ramet.VM) -> None:
    """One caller gives up on a frozen guest after half a second; another, on the same connection, gets its
    answer later.
    """
    async with warm.fork(1) as (vm,):
        record = vm._record
        context = vm._context
        vmm = context.vmm(record)
        await vmm.pause()
        answers: list[str] = []
        open_stream = partial(claim_port, vm.directory, 8, 60)

        async def impatient() -> None:
            with pytest.raises(ramet.GuestTimeoutError, match=r"0\.5 s"):
                async with context.agents.lease(vm.id, open_stream=open_stream, timeout_s=0.5):
                    pass

        async def patient() -> None:
            async with context.agents.lease(vm.id, open_stream=open_stream, timeout_s=30) as agent:
                answers.append(agent.welcome.agent_version)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(impatient)
            tasks.start_soon(patient)
            await anyio.sleep(1)
            await vmm.resume()
        assert len(answers) == 1


@pytest.mark.vm
async def test_leaving_on_a_disk_without_room_ends_the_vmms(
    warm: ramet.VM, warm_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row can't be deleted: the VMM ends all the same, and the next Host clears the rest away."""
    (vm,) = await warm.fork(1)

    def full(*_: object, **__: object) -> None:
        raise ramet.StoreError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "remove_all", full)
        with pytest.raises(RametError, match="full"):
            await destroy_all(vm._context, [vm._record])
    assert living_in(warm_home) == []
    await vm.remove(force=True)


async def test_the_launcher_for_yama_keeps_pid_owner_tag_directory_and_descriptors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Yama itself isn't on every machine; that a VMM started through the launcher is the same VMM can be
    shown anywhere.
    """
    scope = tmp_path / "ptrace_scope"
    scope.write_text("1\n")
    monkeypatch.setattr(spawn, "_YAMA_SCOPE", scope)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert spawn._launcher()
    reader, writer = os.pipe()
    script = f"echo $$ $RAMET_VMM $PWD > /dev/fd/{writer}; exec sleep 60"
    child = spawn.spawn(["sh", "-c", script], directory=tmp_path, log=tmp_path / "log", fds=[writer])
    os.close(writer)
    with os.fdopen(reader) as said:
        pid, tag, directory = said.readline().split()
    assert (int(pid), tag, directory) == (child.pid, str(tmp_path), str(tmp_path))
    await processes.kill(child)
    assert not liveness.is_alive(child)
