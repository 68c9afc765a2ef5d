"""What a receipt says of a raw disk: all that was duplicated for it, also while its source was paused."""

from __future__ import annotations

from pathlib import Path

import pytest

from ramet.disk.volumes import ForkedDisk, snapshot_raw, with_capture
from ramet.model import protocols
from ramet.model.record import Disk
from ramet.model.schema import DiskReceipt
from ramet.system.share import Shared

pytestmark = [pytest.mark.vm, pytest.mark.anyio]


def receipt(fork: protocols.VM) -> DiskReceipt:
    [one] = fork.receipt.disks
    return one


async def test_a_branch_counts_its_capture_too(probes: protocols.Host) -> None:
    vm = await probes.run("probe", driver="firecracker", memory="64M", disks=["16M"])
    await vm.exec("bpoke", "3", "0x1111", check=True)
    [branch] = await vm.fork(1)
    twice = receipt(branch)
    [fork] = await (await vm.template()).fork(1)
    once = receipt(fork)
    assert once.mode == twice.mode
    assert once.reason.startswith("a raw disk can't be linked: ")
    assert twice.reason == f"{once.reason} (in the capture, too)"
    if once.mode == "copied":
        assert once.bytes_copied > 0
        assert "a home on XFS or Btrfs shares its blocks instead" in once.reason
    assert twice.bytes_copied == 2 * once.bytes_copied


async def test_the_worse_way_counts(probes: protocols.Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The capture's filesystem refused what the fork's didn't."""
    vm = await probes.run("probe", driver="firecracker", memory="64M", disks=["16M"])
    await vm.exec("bpoke", "3", "0x1111", check=True)

    def outright(source: Path, destination: Path) -> Shared:
        return snapshot_raw(source, destination, share=False)

    monkeypatch.setattr("ramet.engine.capture.overlays.snapshot_raw", outright)
    [branch] = await vm.fork(1)
    assert receipt(branch).mode == "copied"
    assert "in the capture" in receipt(branch).reason


DISK = Disk(name="disk", file="disk.raw", format="raw", size_bytes=1 << 20)


@pytest.mark.parametrize(
    ("captured", "mode", "reason"),
    [
        (None, "reflinked", "here"),
        (Shared("reflinked", "there", 5), "reflinked", "here (in the capture, too)"),
        (Shared("copied", "there", 5), "copied", "in the capture: there"),
        (Shared("shared", "there", 5), "reflinked", "here"),
    ],
)
def test_in_all(captured: Shared | None, mode: str, reason: str) -> None:
    whole = with_capture(ForkedDisk(DISK, "reflinked", "here", 2), captured)
    assert (whole.disk, whole.mode, whole.reason) == (DISK, mode, reason)
    assert whole.bytes_copied == (2 if captured is None else 7)
