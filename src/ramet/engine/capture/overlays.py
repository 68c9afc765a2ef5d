"""Disks at a capture: frozen in its pause by a switch to overlays, which the record then names."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path

import msgspec

from ramet.disk.chains import chain_of
from ramet.disk.volumes import files_of, snapshot_raw, uppermost
from ramet.drivers.interface import FreezesDisks, Vmm
from ramet.engine.capture.plan import Plan
from ramet.engine.context import Context
from ramet.errors import RametError, VmmError
from ramet.model.record import Disk, Record
from ramet.system import processes, threads
from ramet.system.share import Shared


async def freeze_disks(plan: Plan, vmm: Vmm) -> dict[str, Shared]:
    """Freeze the disks at this moment. Returns the way in which each file was duplicated.

    An overlay takes later writes, or the file is duplicated.
    """
    if plan.overlays:
        assert isinstance(vmm, FreezesDisks)
        await vmm.switch_overlays(plan.overlays)
    duplicated = {}
    for disk in plan.record.machine.disks:
        if disk.format == "raw":
            duplicated[disk.name] = await threads.run(
                snapshot_raw, plan.own / disk.file, plan.directory / disk.file
            )
    return duplicated


async def commit_overlays(context: Context, plan: Plan, vmm: FreezesDisks) -> None:
    """Record the files that the disks are really in now, and remove unneeded overlays.

    A VMM that has died can't be asked: then the disks are where a start would find them. Raises `VmmError`
    for it.
    """
    try:
        active = await vmm.active_files()
    except VmmError:
        if await processes.wait_ended(plan.running.process, timeout_s=processes.LAST_BREATH_S):
            with suppress(RametError):  # removed meanwhile, for example: its end is reported
                context.store.change(plan.record.id, partial(_with_uppermost, plan.own))
        raise
    switched = {frozen.file: new for frozen, new in plan.overlays if active.get(frozen.name) == new.file}
    unused = [pair for pair in plan.overlays if pair[0].file not in switched]
    if switched:
        chained = {
            file: msgspec.structs.replace(new, backing=chain_of(plan.own, new.file)[:-1])
            for file, new in switched.items()
        }
        context.store.change(plan.record.id, lambda row: _with_disks(row, chained))
    if unused:
        try:
            await vmm.drop_overlays(unused)
        finally:
            for _, new in unused:
                (plan.own / new.file).unlink(missing_ok=True)


def _with_uppermost(own: Path, record: Record) -> Record:
    """Return `record` with the files that a start would find: the last overlay of each disk in `own`."""
    disks = tuple(uppermost(own, disk) for disk in record.machine.disks)
    return msgspec.structs.replace(record, machine=msgspec.structs.replace(record.machine, disks=disks))


def _with_disks(record: Record, switched: dict[str, Disk]) -> Record:
    """Return `record` with the disks that were switched to other files."""
    disks = tuple(switched.get(disk.file, disk) for disk in record.machine.disks)
    return msgspec.structs.replace(record, machine=msgspec.structs.replace(record.machine, disks=disks))


async def with_disks_as_they_are(record: Record, vmm: Vmm) -> Record:
    """Return `record` with the files that its disks are really in.

    A capture may have switched them and then died.
    """
    if not isinstance(vmm, FreezesDisks) or not record.machine.disks:
        return record
    files = await vmm.active_files()
    disks = []
    for disk in record.machine.disks:
        file = files.get(disk.name, disk.file)
        if file != disk.file:
            disk = msgspec.structs.replace(disk, file=file, backing=(*disk.backing, disk.file))
        disks.append(disk)
    return msgspec.structs.replace(
        record, machine=msgspec.structs.replace(record.machine, disks=tuple(disks))
    )


async def drop_unused_overlays(directory: Path, record: Record, vmm: Vmm) -> None:
    """Remove the overlays that a capture had made and not switched to."""
    if not isinstance(vmm, FreezesDisks):
        return
    for disk in record.machine.disks:
        chain = files_of(disk)
        for left in directory.glob(f"{disk.name}-*.qcow2"):
            if left.name not in chain:
                unused = msgspec.structs.replace(disk, file=left.name, backing=chain)
                await vmm.drop_overlays([(disk, unused)])
                left.unlink(missing_ok=True)
