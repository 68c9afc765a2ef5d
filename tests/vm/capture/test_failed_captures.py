"""What a capture that failed leaves: a guest that runs, or is said not to, and no file more than before."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

import ramet
from ramet.disk.volumes import files_of, make_overlay, next_overlay
from ramet.drivers.qemu.vmm import QemuVmm
from ramet.engine.recovery import recover
from ramet.errors import FilesystemError, RametError, VmmError, VmmTimeoutError
from ramet.model import protocols
from ramet.model.lifecycle import State
from ramet.model.record import Disk, Intent
from ramet.system import process_ref, processes
from tests.support.ready import Ready

pytestmark = [pytest.mark.vm, pytest.mark.anyio]


async def hangs(*_: object) -> None:
    raise VmmTimeoutError("it doesn't answer")


async def refuses(*_: object) -> None:
    raise VmmError("no vmstate")


async def paused_and_can_be_resumed(vm: protocols.VM) -> None:
    """In its record and in fact."""
    assert (await vm.info()).state is State.PAUSED
    assert (await vm.inspect()).vmm_status == "paused"
    await vm.resume()
    assert (await vm.exec("true")).ok


def disks_of(vm: ramet.VM) -> tuple[Disk, ...]:
    """As its record has them."""
    return vm._context.store.get(vm.id).machine.disks


async def test_a_guest_that_cannot_be_told_to_go_on_is_paused(
    host: ramet.Host, ready: Ready, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = await ready(host, name="still", disks=("16M",))
    with monkeypatch.context() as patched:
        patched.setattr(QemuVmm, "resume", hangs)
        with pytest.raises(VmmTimeoutError, match="still is paused, and its VMM") as caught:
            await vm.snapshot("now")
    assert caught.value.hint == "`ramet resume still` tries again"
    await paused_and_can_be_resumed(vm)
    # The error inside is the one that is raised.
    with monkeypatch.context() as patched:
        patched.setattr(QemuVmm, "resume", hangs)
        patched.setattr(QemuVmm, "save_vmstate", refuses)
        with pytest.raises(VmmError, match="no vmstate"):
            await vm.fork(1)
    await paused_and_can_be_resumed(vm)
    assert await host.snapshots() == []
    with monkeypatch.context() as patched:
        patched.setattr(QemuVmm, "resume", hangs)
        patched.setattr(QemuVmm, "save_vmstate", refuses)
        with pytest.raises(VmmError):
            await vm.standby()
    await paused_and_can_be_resumed(vm)
    await vm.standby()


async def switched(host: ramet.Host, ready: Ready) -> tuple[ramet.VM, QemuVmm, Disk, Disk]:
    """A paused guest whose disk has been switched to an overlay, which nobody has written down: the disk as
    its record has it, and as it is.
    """
    vm = await ready(host, disks=("16M",))
    record = vm._context.store.get(vm.id)
    vmm = vm._context.vmm(record)
    assert isinstance(vmm, QemuVmm)
    [disk] = record.machine.disks
    over = next_overlay(disk, vm.directory)
    make_overlay(vm.directory, over)
    await vmm.prepare_overlays([(disk, over)])
    await vmm.pause()
    await vmm.switch_overlays([(disk, over)])
    return vm, vmm, disk, over


async def test_what_is_known_of_the_disks_is_kept_when_an_overlay_cannot_be_dropped(
    host: ramet.Host, ready: Ready, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a ramet leaves it that was killed when it had switched the disk and not yet written that down."""
    vm, _, _, over = await switched(host, ready)
    context, record = vm._context, vm._context.store.get(vm.id)
    left = next_overlay(over, vm.directory)
    make_overlay(vm.directory, left)
    with subprocess.Popen(["true"]) as gone:
        pending = Intent(what="capture", by=process_ref.reference(gone.pid))
    context.store.change(record.id, lambda row: msgspec.structs.replace(row, pending=pending))
    with monkeypatch.context() as patched:
        patched.setattr(QemuVmm, "drop_overlays", refuses)
        await recover(context, record)
    found = context.store.get(vm.id)
    assert (found.state, found.pending) == (State.RUNNING, None)
    assert found.machine.disks == (over,)
    await vm.exec("sh", "-c", "echo kept | dd of=/dev/vda conv=fsync", check=True)
    [branch] = await vm.fork(1)
    assert (await branch.exec("head", "-c", "5", "/dev/vda")).text == "kept\n"


def _no_room(directory: Path, disk: Disk) -> None:
    if disk.name != "disk":
        raise FilesystemError("no room")
    make_overlay(directory, disk)


def _no_session(*_: object, **__: object) -> object:
    raise VmmError("no session")


@pytest.mark.parametrize(
    ("what", "instead", "said"),
    [
        ("ramet.engine.capture.plan.make_overlay", _no_room, "no room"),
        ("ramet.drivers.qemu.vmm.QemuVmm.session", _no_session, "no session"),
        ("ramet.drivers.qemu.disks._layer", _no_session, "no session"),
        ("ramet.drivers.qemu.disks.switch_overlays", refuses, "no vmstate"),
    ],
    ids=["making the second", "the session", "opening", "switching"],
)
async def test_no_overlay_is_left(
    host: ramet.Host,
    ready: Ready,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    instead: object,
    said: str,
) -> None:
    vm = await ready(host, disks=("16M", "16M"))
    before = sorted(path.name for path in vm.directory.glob("*.qcow2"))
    assert before == sorted(name for disk in disks_of(vm) for name in files_of(disk))
    with monkeypatch.context() as patched:
        patched.setattr(what, instead)
        with pytest.raises(RametError, match=said):
            await vm.fork(1)
    assert sorted(path.name for path in vm.directory.glob("*.qcow2")) == before
    assert (await vm.info()).state is State.RUNNING
    [branch] = await vm.fork(1)
    assert (await branch.exec("head", "-c", "1", "/dev/vdb")).ok


# Without a switch, `test_no_overlay_is_left` has the VMM that refuses it.
@pytest.mark.parametrize("switched_before", [True, pytest.param(False, marks=pytest.mark.deep)])
async def test_a_vmm_that_dies_with_its_overlays_open_leaves_no_file_without_a_use(
    host: ramet.Host, ready: Ready, monkeypatch: pytest.MonkeyPatch, switched_before: bool
) -> None:
    """Whether or not a disk was in its overlay by then: there it is, and a start finds what it had."""
    vm = await ready(host, disks=("16M",))
    (before,) = disks_of(vm)
    await vm.exec("sh", "-c", "echo kept | dd of=/dev/vda conv=fsync", check=True)
    original = QemuVmm.switch_overlays

    async def dies(self: QemuVmm, pairs: Sequence[tuple[Disk, Disk]]) -> None:
        if switched_before:
            await original(self, pairs)
        await processes.kill(self.process)
        raise VmmError("it died")

    with monkeypatch.context() as patched:
        patched.setattr(QemuVmm, "switch_overlays", dies)
        with pytest.raises(VmmError):
            await vm.fork(1)
    (disk,) = disks_of(vm)
    assert {path.name for path in vm.directory.glob("*.qcow2")} == set(files_of(disk))
    assert files_of(disk)[:-1] == files_of(before)
    assert (await vm.info()).state is State.FAILED
    await vm.stop()
    await vm.start()
    assert (await vm.exec("head", "-c", "5", "/dev/vda")).text == "kept\n"


async def test_what_a_guest_wrote_after_a_capture_that_nobody_wrote_down_is_found_by_a_cold_start(
    host: ramet.Host, ready: Ready
) -> None:
    """Ramet and then the VMM were killed: nobody can be asked any more in which file the disk is."""
    vm, vmm, disk, over = await switched(host, ready)
    context = vm._context
    await vmm.resume()
    await vm.exec("sh", "-c", "echo kept | dd of=/dev/vda conv=fsync", check=True)
    assert context.store.get(vm.id).machine.disks == (disk,)
    await processes.kill(vmm.process)
    assert (await vm.info()).state is State.FAILED
    await vm.stop()
    await vm.start()
    assert context.store.get(vm.id).machine.disks == (over,)
    assert (await vm.exec("head", "-c", "5", "/dev/vda")).text == "kept\n"
