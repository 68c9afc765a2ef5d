"""Main processes: what they are started with, whose end is the instance's, and how they are asked to end."""

from __future__ import annotations

from contextlib import suppress

import anyio
import pytest

import ramet
from ramet.engine.exec.commands import main_process
from ramet.engine.lifecycle.watch import wait
from ramet.errors import RametError, WrongStateError
from ramet.images.library.records import ContainerImage
from ramet.model.lifecycle import State
from ramet.model.schema import Instance
from tests.support.containers import run

pytestmark = [pytest.mark.vm, pytest.mark.anyio]

_SERVICE = (
    'echo "$COLOR $PLACE $EXTRA"; pwd; id; trap "echo asked; exit 7" USR1; echo ready;'
    " while [ ! -e /tmp/end ]; do sleep 0.05; done; exit $(cat /tmp/end)"
)


async def end_of(vm: ramet.VM) -> Instance:
    """Wait for an instance's end."""
    with anyio.fail_after(60):
        await vm.wait()
    return await vm.info()


async def console_has(vm: ramet.VM, text: str) -> str:
    """Wait until the console has a text, and return the console."""
    with anyio.fail_after(60):
        while text not in (logs := (vm.directory / "console.log").read_text(errors="replace")):
            await anyio.sleep(0.02)
    return logs


@pytest.mark.core
async def test_a_service_its_forks_and_their_ends(host: ramet.Host, image: ContainerImage) -> None:
    """Booted with its root in RAM: environment, directory and user of image and call; four forks go on with
    their own main process; each ends by itself, the source by its stop signal.
    """
    vm = await run(
        host,
        image,
        _SERVICE,
        name="service",
        rootfs="ram:16M",
        env={"PLACE": "call", "EXTRA": "more"},
        stop_signal="USR1",
    )
    said = (await console_has(vm, "ready")).replace("\r", "")
    assert "blue call more\n/work/here\nuid=1000(app) gid=1001(app) groups=" in said
    assert "1002(extra)\n" in said
    info = await vm.info()
    assert (info.image, info.image_digest, info.exit_code) == (image.name, image.digest, None)

    result = await vm.exec("sh", "-c", 'echo "$COLOR $PLACE"; pwd; id -u; df -k /', check=True)
    assert result.text.startswith("blue call\n/work/here\n1000\n")
    assert "overlay                  16384 " in result.text
    other = await vm.exec(
        "sh", "-c", 'echo "$PLACE"; pwd; id -u', env={"PLACE": "exec"}, cwd="/", user="root"
    )
    assert other.text.split() == ["exec", "/", "0"]
    await vm.exec("touch", "/tmp/source", check=True)

    forks = await vm.fork(4)
    own = [(vm.directory / base.file).stat() for base in vm._record.machine.bases]
    assert len(own) == 2
    for number, fork in enumerate(forks):
        assert [base.mode for base in fork.receipt.bases] == ["shared", "shared"]
        assert [base.inode for base in fork.receipt.bases] == [file.st_ino for file in own]
        assert fork._record.main == vm._record.main
        await fork.exec("sh", "-c", f"test -e /tmp/source && echo {20 + number} > /tmp/end", check=True)
    for number, fork in enumerate(forks):
        ended = await end_of(fork)
        assert (ended.state, ended.exit_code) == (State.STOPPED, 20 + number)
        assert ended.reason == f"its main process ended with exit code {20 + number}"
    assert (await vm.info()).state is State.RUNNING

    stopped = await vm.stop()
    assert (stopped.state, stopped.exit_code) == (State.STOPPED, 7)
    assert "asked" in await console_has(vm, "asked")


@pytest.mark.deep
async def test_a_short_one_with_the_commands_of_its_image(host: ramet.Host, image: ContainerImage) -> None:
    """Started again, it runs again; the root disk has kept what was written."""
    vm = await run(host, image, name="short")
    ended = await end_of(vm)
    assert (ended.state, ended.exit_code) == (State.STOPPED, 3)
    assert "from the image" in (vm.directory / "console.log").read_text()
    await vm.start()
    assert (await end_of(vm)).exit_code == 3
    await vm.remove()


async def test_an_idle_ones_is_started_with_streams(host: ramet.Host, idle: ramet.VM) -> None:
    assert (await idle.exec("id", "-un", check=True)).text == "app\n"
    context = idle._context
    async with main_process(context, idle._record) as running:
        said = [chunk.data async for chunk in running.output()]
        status = await running.wait()
    assert (b"".join(said), status.exit_code) == (b"from the image\n", 3)
    ended = await end_of(idle)
    assert (ended.state, ended.exit_code) == (State.STOPPED, 3)
    with pytest.raises(RametError):
        async with main_process(context, idle._record):
            pass


async def test_a_killed_ones_code_is_its_signals(host: ramet.Host, idle: ramet.VM) -> None:
    """A rewind gives the main process back, as it was: not started yet, or running."""
    await idle.snapshot("before")
    context = idle._context
    async with main_process(context, idle._record):
        with pytest.raises(WrongStateError, match="was started"):
            async with main_process(context, idle._record):
                pass
    ended = await end_of(idle)
    assert (ended.exit_code, ended.reason) == (137, "its main process was ended by signal 9")
    await idle.rewind("before")
    main = idle._record.main
    assert main is not None
    assert main.is_idle
    assert (await idle.info()).exit_code is None
    async with main_process(context, idle._record) as running:
        assert (await running.wait()).exit_code == 3
    assert (await end_of(idle)).exit_code == 3


async def test_one_that_cannot_be_started_leaves_nothing(host: ramet.Host, image: ContainerImage) -> None:
    before = [instance.name for instance in await host.list(everything=True)]
    with pytest.raises(RametError, match="nobody"):
        await run(host, image, user="nobody", name="unknown-user")
    assert [instance.name for instance in await host.list(everything=True)] == before


@pytest.mark.deep
async def test_reboots_restarts_and_hard_ends(host: ramet.Host, image: ContainerImage) -> None:
    """A reboot isn't an end: the main process runs again. The code of a killed VMM is SIGKILL's."""
    vm = await run(host, image, "trap '' TERM; echo start >> /starts; sleep 1000", user="root", name="again")
    await vm.spawn("/bin/reboot", cwd="/")
    await _has_started(vm, "cat", "/starts", says="start\nstart\n")
    assert (await vm.info()).state is State.RUNNING
    stopped = await vm.stop(timeout=0)
    assert stopped.exit_code == 137
    await vm.start()
    assert (await vm.info()).exit_code is None
    await _has_started(
        vm, "sh", "-c", "ps | grep -q [s]leep && echo yes", says="yes"
    )  # it ignores the signal
    assert (await vm.stop(timeout=4)).exit_code == 137


async def _has_started(vm: ramet.VM, *command: str, says: str) -> None:
    """Wait until a command's output begins so; a guest that reboots may not answer."""
    with anyio.fail_after(60):
        while True:
            await anyio.sleep(0.1)
            with suppress(RametError):
                if (await vm.exec(*command, cwd="/")).text.startswith(says):
                    return


@pytest.mark.deep
async def test_one_to_be_removed_goes_with_its_end(host: ramet.Host, image: ContainerImage) -> None:
    vm = await run(host, image, "sleep 1; exit 5", auto_remove=True, name="gone")
    with anyio.fail_after(60):
        ended = await wait(vm._context, vm._record)
        assert ended.exit_code == 5
        while vm.directory.exists():
            await anyio.sleep(0.02)
    assert [instance.name for instance in await host.list(everything=True)] == ["idle"]
