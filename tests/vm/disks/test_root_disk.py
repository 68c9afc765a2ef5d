"""The root of a container image's guest: full, made larger, forked; and what is said of one that is full."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import anyio.to_thread
import pytest

import ramet
from ramet.errors import ExecError, NotFoundError
from ramet.model.container import ImageConfig
from ramet.model.rootfs import why_full
from ramet.model.schema import GuestRoot
from ramet.units import MIB
from tests.support.containers import add_image, run
from tests.support.shell import Shell

pytestmark = [pytest.mark.vm, pytest.mark.anyio]

_WAITS = ImageConfig(cmd=("/bin/sh", "-c", "while [ ! -e /go ]; do sleep 0.1; done; exit 7"))
_FILL = ("dd", "if=/dev/zero", "of=/filling", "bs=64k")


@pytest.fixture
async def host(home: Path) -> AsyncIterator[ramet.Host]:
    async with ramet.Host(home) as opened:
        yield opened


async def free_mib(vm: ramet.VM) -> int:
    root = await vm.root()
    assert root is not None
    return root.free_bytes // MIB


@pytest.mark.core
async def test_a_full_root_disk_is_named_and_made_larger(host: ramet.Host) -> None:
    vm = await run(host, await add_image(host.home, _WAITS), name="web", rootfs="disk:64M")
    failed = await vm.exec("ls", "/nowhere")
    assert (failed.ok, failed.note) == (False, None)  # a failure of a root that isn't full has no note
    (before,) = await vm.fork(1)
    full = await vm.exec(*_FILL)
    remedy = "`ramet disk resize web root SIZE` gives it more"
    assert full.note is not None
    assert remedy in full.note
    with pytest.raises(ExecError, match="No space left on device") as error:
        await vm.exec(*_FILL, check=True)
    assert error.value.hint is not None
    assert remedy in error.value.hint
    assert await free_mib(vm) == 0
    shell = Shell(host.home)
    shown = await anyio.to_thread.run_sync(lambda: shell("exec", "web", "--", *_FILL, code=1))
    assert remedy in shown.stderr.decode()
    root = (await vm.inspect()).root
    assert root is not None
    assert (root.kind, root.free_bytes) == ("disk", 0)
    assert (await vm.resize_disk("root", "256M")).filesystem_bytes == 256 * MIB
    assert 150 < await free_mib(vm) < 200
    assert (await vm.exec("dd", "if=/dev/zero", "of=/more", "bs=1M", "count=100", check=True)).note is None
    (after,) = await vm.fork(1, require_shared=True)
    assert (await free_mib(after) < 100, await free_mib(before) < 64) == (True, True)
    # The main process ends while the root is full: the reason of the end says so.
    await vm.exec(*_FILL)
    await vm.exec("touch", "/go", check=True)
    await vm.wait()
    ended = await vm.info()
    assert ended.exit_code == 7
    assert ended.reason is not None
    assert "exit code 7; the guest's root is full" in ended.reason
    assert "--rootfs disk:SIZE" in ended.reason


@pytest.mark.deep
async def test_the_root_of_one_that_is_off_becomes_larger(host: ramet.Host) -> None:
    vm = await run(host, await add_image(host.home, _WAITS), rootfs="disk:64M")
    await vm.exec("sh", "-c", "echo kept > /file; sync", check=True)
    (fork,) = await vm.fork(1)
    for guest in (vm, fork):
        await guest.stop()
        await guest.resize_disk("root", "1G")
        await guest.start()
        assert await free_mib(guest) > 700
        assert (await guest.exec("cat", "/file", check=True)).text == "kept\n"


@pytest.mark.deep
async def test_a_full_root_in_ram_names_its_option(host: ramet.Host) -> None:
    vm = await run(host, await add_image(host.home, _WAITS), rootfs="ram:8M")
    full = await vm.exec(*_FILL)
    assert full.note is not None
    assert "`ramet run --rootfs ram:SIZE`" in full.note
    with pytest.raises(NotFoundError, match="no disk 'root'") as missing:
        await vm.resize_disk("root", "1G")
    assert missing.value.hint is not None
    assert "its root is in RAM" in missing.value.hint
    with pytest.raises(NotFoundError, match="no disk 'rot'") as missing:
        await vm.resize_disk("rot", "1G")
    assert missing.value.hint == "it has no disk at all"
    await vm.exec("touch", "/go", check=True)
    await vm.wait()
    assert "all 8 MiB of it: --rootfs ram:SIZE" in ((await vm.info()).reason or "")


@pytest.mark.deep
async def test_without_files_left(host: ramet.Host) -> None:
    """Many small files: there are bytes, and no inodes."""
    vm = await run(host, await add_image(host.home, _WAITS), rootfs="ram:8M")
    many = "i=0; mkdir /d; while touch /d/$i 2> /dev/null; do i=$((i + 1)); done; exit 3"
    full = await vm.exec("sh", "-c", many)
    assert full.exit_code == 3
    assert full.note is not None
    assert "no more files in 8.0 MiB" in full.note
    assert await free_mib(vm) > 5


@pytest.mark.parametrize(
    ("free_bytes", "free_files", "full"),
    [(MIB, 5, False), (MIB - 1, 5, True), (10 * MIB, 0, True), (10 * MIB, None, False)],
)
def test_how_full_is_full(free_bytes: int, free_files: int | None, full: bool) -> None:
    root = GuestRoot(kind="disk", size_bytes=20 * MIB, free_bytes=free_bytes, free_files=free_files)
    assert (why_full("web", root) is not None) == full
