"""What a fork and a branch write, by the kernel's count and by what lies on the disk afterwards."""

from __future__ import annotations

import os
import tempfile

import pytest

import ramet
from ramet.engine.manifest import read_manifest
from ramet.model import protocols
from ramet.paths import VMSTATE_FILE
from ramet.units import KIB, MIB
from tests.side_by_side import tell
from tests.support.guests import Guest, io_of, own_bytes, pid_of
from tests.vm.conftest import host_and_snapshots

host = host_and_snapshots

pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.timeout(900)]

_ALLOWED_BYTES = 256 * KIB
_LARGE_MIB = int(os.environ.get("RAMET_TESTS_LARGE_DISK_MIB", "300"))
"""5000 is the size of the promise; CI writes less."""
_SMALL_MIB = _LARGE_MIB // 100 if _LARGE_MIB < 5000 else 5


class Written:
    """Bytes that this process and some others have sent to the disk since this was made (proc(5):
    `write_bytes`).
    """

    def __init__(self, *pids: int) -> None:
        which: tuple[int | str, ...] = ("self", *pids)
        self._before = {pid: io_of(pid)["write_bytes"] for pid in which}

    def bytes(self, *new: int) -> int:
        """Those of `new` processes are counted from their beginning."""
        since = sum(io_of(pid)["write_bytes"] - before for pid, before in self._before.items())
        return since + sum(io_of(pid)["write_bytes"] for pid in new)


@pytest.fixture
async def with_disk(linux: Guest, host: ramet.Host) -> dict[int, ramet.VM]:
    """Forks of one template, by how many MiB each has written to its disk, past its page cache."""
    base = await linux.boot(host, disk=f"{2 * _LARGE_MIB}M")
    await base.template()
    forks = {}
    for mib in (_SMALL_MIB, _LARGE_MIB):
        (fork,) = await base.fork(1)
        script = f"dd if=/dev/zero of=/dev/vda bs=1M count={mib} oflag=direct 2> /dev/null && sync"
        await fork.exec("sh", "-c", script, check=True, timeout=600)
        disks = sum(path.stat().st_blocks * 512 for path in fork.directory.glob("disk*.qcow2"))
        assert disks >= mib * MIB, "it wasn't written"
        await linux.write(fork, 0, mib)
        forks[mib] = fork
    return forks


@pytest.mark.deep
@pytest.mark.alone
async def test_what_is_on_the_disk_makes_no_fork_dearer(linux: Guest, with_disk: dict[int, ramet.VM]) -> None:
    written: dict[str, dict[int, int]] = {"branch": {}, "fork": {}}
    published: dict[int, int] = {}
    for mib, source in with_disk.items():
        since = Written(await pid_of(source))
        (branch,) = await source.fork(1, require_shared=True)
        written["branch"][mib] = since.bytes(branch.receipt.pid)
        snapshot = await source.snapshot()
        published[mib] = sum(own_bytes(snapshot.directory).values())
        since = Written()
        (fork,) = await snapshot.fork(1, require_shared=True)
        written["fork"][mib] = since.bytes(fork.receipt.pid)
        assert await linux.read(fork, 1) == await linux.read(branch, 1) == ([mib], [mib])
    for what, found in {**written, "published": published}.items():
        small, large = found[_SMALL_MIB], found[_LARGE_MIB]
        tell(
            f"{what} with {_LARGE_MIB} MiB on the disk: {large >> 10} KiB; "
            f"with {_SMALL_MIB}: {small >> 10} KiB"
        )
        # The guests' own daily life differs a little; a hundredth of the disk would already be far more.
        assert large <= small + MIB, what


@pytest.mark.deep
@pytest.mark.alone
async def test_a_branch_writes_what_has_changed(guest: Guest, source: ramet.VM, host: ramet.Host) -> None:
    """Changed pages, vmstate, and at most 256 KiB: on the disk, and through the kernel."""
    await guest.change(source, 3)
    since = Written(await pid_of(source))
    snapshot = await source.snapshot("measured")
    wrote = since.bytes()
    manifest = read_manifest(snapshot.directory)
    due = manifest.memory.delta_bytes + manifest.parts[VMSTATE_FILE].facts.size_bytes
    occupied = sum(own_bytes(snapshot.directory).values())
    since = Written(await pid_of(source))
    (branch,) = await source.fork(1)
    branched = since.bytes() - _copied(branch)
    tell(
        f"{guest.driver}: a snapshot of {manifest.memory.delta_bytes >> 10} KiB changed + vmstate"
        f" {manifest.parts[VMSTATE_FILE].facts.size_bytes >> 10} KiB: occupies {occupied >> 10} KiB, wrote"
        f" {wrote >> 10} KiB; a branch wrote {branched >> 10} KiB"
    )
    assert manifest.memory.delta_bytes >= 3 * MIB
    disks = sum(size for name, size in own_bytes(snapshot.directory).items() if name.startswith("disk"))
    assert occupied - disks <= due + _ALLOWED_BYTES
    assert wrote - disks <= due + _ALLOWED_BYTES
    assert branched <= due + _ALLOWED_BYTES
    # What would be caught: the same with one file of a megabyte more.
    since = Written()
    with tempfile.NamedTemporaryFile(dir=host.home) as file:
        file.write(os.urandom(MIB))
        file.flush()
        os.fsync(file.fileno())
        assert since.bytes() >= MIB


def _copied(fork: protocols.VM) -> int:
    """A raw disk is duplicated for the capture and for the fork; the receipt says so."""
    return sum(disk.bytes_copied for disk in fork.receipt.disks)
