"""A larger disk: the file, the size that the guest sees, and the filesystem that ramet made on the disk.

The file decides: a record may have an older size after a crash, and gets the file's. Snapshots and earlier
forks have separate files, so their disks keep their size.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import anyio
import msgspec

from ramet.disk.volumes import grow_disk, size_of, uppermost
from ramet.drivers.interface import ResizesDisks
from ramet.engine import limits
from ramet.engine.agent.session import agent_of
from ramet.engine.context import Context
from ramet.engine.lifecycle.jobs import job
from ramet.engine.lifecycle.roots import ROOT_DISK
from ramet.errors import (
    GuestError,
    NotFoundError,
    RametError,
    UnavailableError,
    UsageError,
    VmmError,
    WrongStateError,
)
from ramet.model.disks import LARGEST_DISK_BYTES
from ramet.model.lifecycle import State, article, next_step
from ramet.model.record import Disk, Record
from ramet.model.schema import ResizedDisk
from ramet.system import threads
from ramet.units import format_bytes

_SECTOR_BYTES: Final = 512
_SEEN_S: Final = 10.0
"""Time in which a guest notices that its disk has another size."""
_LOOK_S: Final = 0.02
_GROWTH_S: Final = 120.0
"""Time for a filesystem to grow: each GiB has eight tables to write."""


async def resize_disk(context: Context, record: Record, name: str, size_bytes: int) -> ResizedDisk:
    """Make the disk `name` of a running or a stopped instance larger, and its filesystem with it.

    The filesystem of a stopped instance grows when the instance is started. A disk that has the size already
    keeps it, and its filesystem grows if it is smaller. Raises `UsageError` for a size that can't be,
    `NotFoundError` for an unknown disk, `WrongStateError`, `UnavailableError` when the driver can't resize a
    disk of a running guest, `FilesystemError`, `VmmError`; `GuestError` when the disk is larger and its
    filesystem isn't.
    """
    async with job(context, record, "resize") as record:
        disk = _disk_called(record, name)
        _require_size(record, disk, size_bytes)
        if record.vmm is None and record.state in {State.STOPPED, State.FAILED}:
            grown = disk
            if size_bytes > disk.size_bytes:
                grown = await threads.run(grow_disk, context.directory(record), disk, size_bytes)
            _commit(context, record, lambda own: grown if own.name == name else own)
            return _resized(record, grown, None)
        if record.state is not State.RUNNING:
            raise WrongStateError(
                f"{record.name} is {article(record.state)}: its disks can't be resized",
                hint=next_step(record.state, record.name),
            )
        vmm = context.vmm(record)
        if not isinstance(vmm, ResizesDisks):
            raise UnavailableError(
                f"{record.driver} can't resize a disk while its guest runs",
                hint=f"`ramet stop {record.name}`, resize it, then `ramet start {record.name}`",
            )
        grown = msgspec.structs.replace(disk, size_bytes=size_bytes)
        try:
            await vmm.grow_disk(grown)
        finally:
            with anyio.CancelScope(shield=True):
                actual = await threads.run(size_of, context.directory(record), disk)
                _commit(context, record, lambda own: _sized(own, name, actual))
        return _resized(record, grown, await _grow_filesystem(context, record, grown))


def _commit(context: Context, record: Record, changed: Callable[[Disk], Disk]) -> None:
    def with_disks(row: Record) -> Record:
        disks = tuple(map(changed, row.machine.disks))
        return msgspec.structs.replace(row, machine=msgspec.structs.replace(row.machine, disks=disks))

    context.store.change(record.id, with_disks)


def _sized(disk: Disk, name: str, size_bytes: int) -> Disk:
    return msgspec.structs.replace(disk, size_bytes=size_bytes) if disk.name == name else disk


def _disk_called(record: Record, name: str) -> Disk:
    for disk in record.machine.disks:
        if disk.name == name:
            return disk
    known = ", ".join(disk.name for disk in record.machine.disks)
    hint = f"it has {known}" if known else "it has no disk at all"
    if name == ROOT_DISK and record.main is not None:
        hint = (
            "its root is in RAM, and keeps its size: a new guest has more with `ramet run --rootfs ram:SIZE`"
        )
    raise NotFoundError(f"{record.name} has no disk {name!r}", hint=hint)


def _require_size(record: Record, disk: Disk, size_bytes: int) -> None:
    if size_bytes < disk.size_bytes:
        raise UsageError(
            f"the disk `{disk.name}` of {record.name} has {format_bytes(disk.size_bytes)}: it can't be made"
            f" smaller ({format_bytes(size_bytes)})",
            hint="a disk only grows; its file has no more than what was written",
        )
    if size_bytes > LARGEST_DISK_BYTES or size_bytes % _SECTOR_BYTES:
        raise UsageError(
            f"a disk of {format_bytes(size_bytes)} can't be",
            hint=f"give it sectors of {_SECTOR_BYTES} bytes, at most {format_bytes(LARGEST_DISK_BYTES)}",
        )


def _resized(record: Record, disk: Disk, filesystem_bytes: int | None) -> ResizedDisk:
    return ResizedDisk(
        id=record.id,
        name=record.name,
        disk=disk.name,
        size_bytes=disk.size_bytes,
        path=disk.path,
        filesystem_bytes=filesystem_bytes,
    )


async def _grow_filesystem(context: Context, record: Record, disk: Disk) -> int | None:
    """Have the agent grow the filesystem that ramet made on a disk. Returns its size; None without one."""
    if disk.path is None:
        return None
    assert record.vmm is not None
    try:
        async with agent_of(
            context, record, record.vmm.process, timeout_s=limits.INSPECT_S, own=True
        ) as agent:
            ends = time.monotonic() + _SEEN_S
            while True:  # the growth of a filesystem has its own, longer limit
                grown = await agent.grow(disk.name, timeout_s=_GROWTH_S)
                if grown.device_bytes >= disk.size_bytes:
                    return grown.filesystem_bytes
                if time.monotonic() > ends:
                    break
                await anyio.sleep(_LOOK_S)
        why = f"its guest still sees {format_bytes(grown.device_bytes)}"
    except RametError as error:
        why = error.message
    raise GuestError(
        f"the disk `{disk.name}` of {record.name} has {format_bytes(disk.size_bytes)} now, but its filesystem"
        f" at {disk.path} didn't grow: {why}",
        hint="the same command tries again; the next start of the instance does, too",
    )


async def finish_resize(context: Context, record: Record) -> Record:
    """Return `record` with the sizes that its disks have, after a ramet that resized one was killed.

    A VMM that lives gets the rest done: its limit on files, and its guest's notice. The filesystem grows at
    the next resize or start.
    """
    directory, disks = context.directory(record), []
    for disk in record.machine.disks:
        if record.vmm is None:
            disk = await threads.run(uppermost, directory, disk)
        size_bytes = await threads.run(size_of, directory, disk)
        grown = msgspec.structs.replace(disk, size_bytes=max(size_bytes, disk.size_bytes))
        if grown != disk and record.vmm is not None:
            vmm = context.vmm(record)
            if isinstance(vmm, ResizesDisks):
                with suppress(VmmError):  # its guest sees the old size: a resize to the same size mends that
                    await vmm.grow_disk(grown)
        disks.append(grown)
    machine = msgspec.structs.replace(record.machine, disks=tuple(disks))
    return msgspec.structs.replace(record, machine=machine)
