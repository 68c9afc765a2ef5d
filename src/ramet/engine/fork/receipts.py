"""Receipts: the report of a call of `fork` on each fork, measured after all of them are done."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from ramet.disk.volumes import ForkedDisk, with_capture
from ramet.engine.capture.capture import Captured
from ramet.engine.context import Context
from ramet.engine.drivers import immutability
from ramet.engine.manifest import Manifest
from ramet.engine.restore.parts import Parts
from ramet.errors import GuestError, RametError, VmmError
from ramet.guest.messages import IdentityReply
from ramet.memory.accounting import private_bytes, smaps_rollup
from ramet.memory.mappings import FileIdentity
from ramet.model.failures import error_shape
from ramet.model.lifecycle import Move
from ramet.model.record import Base, Record
from ramet.model.schema import (
    BaseReceipt,
    DiskReceipt,
    ForkFailure,
    ForkReport,
    IdentityReceipt,
    MemoryReceipt,
    Receipt,
    ShareMode,
    Timings,
    WarmState,
)
from ramet.paths import MEM_FILE
from ramet.system.share import Shared
from ramet.units import format_bytes


class Forked(NamedTuple):
    """A fork that has proved itself."""

    record: Record
    parts: Parts
    identity: IdentityReply
    timings: Timings
    captured: Captured | None = None
    """The capture of its source that was made for it."""
    warm: WarmState | None = None
    """The warm VMM's state, if the fork was made from one."""


def report(
    context: Context,
    manifest: Manifest,
    records: Sequence[Record],
    results: dict[str, Forked | Exception],
    called_at: float,
    *,
    detach: bool = False,
) -> ForkReport:
    """Make the call's report, and record the forks that it has receipts for, all in one transaction.

    With `detach` they belong to nobody from that transaction on: no fork is detached before it is whole, and
    no fork of a call whose process is killed earlier stays.

    A fork that hasn't outlived the call, was removed meanwhile, or drew a sibling's random bytes, becomes a
    failure in `results` too. Raises `StoreError`: no fork is recorded then.
    """
    _require_distinct(records, results)
    receipts: dict[str, Receipt] = {}
    for record in records:
        result = results[record.id]
        if isinstance(result, Forked):
            try:
                receipts[record.id] = _receipt(context, result)
            except (RametError, OSError) as error:
                results[record.id] = VmmError(f"{record.name} didn't outlive the call: {error}")
    _commit(context, results, receipts, detach=detach)
    forks: list[Receipt | ForkFailure] = []
    saved_bytes = 0
    for record in records:
        result = results[record.id]
        if isinstance(result, Forked):
            forks.append(receipts[record.id])
            if result.parts.memory.mode == "shared":
                saved_bytes += manifest.parts[manifest.memory.base].facts.allocated_bytes
        else:
            forks.append(ForkFailure(name=record.name, error=error_shape(result)))
    wall_ms = round((time.perf_counter() - called_at) * 1000, 3)
    return ForkReport(forks=forks, wall_ms=wall_ms, saved_bytes=saved_bytes)


def _commit(
    context: Context, results: dict[str, Forked | Exception], receipts: dict[str, Receipt], *, detach: bool
) -> None:
    """Write down that these run, how they were made, and who they belong to."""

    def runs(forked: Forked) -> Callable[[Record], Record]:
        return lambda row: msgspec.structs.replace(
            row.moved(Move.BOOT, vmm=forked.record.vmm),
            machine=forked.record.machine,
            owner=None if detach else row.owner,
        )

    proved = {row_id: outcome for row_id in receipts if isinstance(outcome := results[row_id], Forked)}
    written = context.store.finish_forks(
        {row_id: runs(outcome) for row_id, outcome in proved.items()}, receipts
    )
    for row_id, row in written.items():
        results[row_id] = row if isinstance(row, Exception) else proved[row_id]._replace(record=row)


def _require_distinct(records: Sequence[Record], results: dict[str, Forked | Exception]) -> None:
    """Make a failure of each fork that drew a sibling's random bytes: its identity isn't verified."""
    drawn: dict[bytes, str] = {}
    for record in records:
        result = results[record.id]
        if isinstance(result, Forked):
            other = drawn.setdefault(result.identity.boot_random, record.name)
            if other != record.name:
                results[record.id] = GuestError(f"{record.name} drew the same random bytes as {other}")


def _receipt(context: Context, forked: Forked) -> Receipt:
    record, identity = forked.record, forked.identity
    assert record.vmm is not None
    assert record.parent is not None
    pid = record.vmm.process.pid
    directory = context.directory(record)
    mem = (directory / MEM_FILE).stat()
    whole = smaps_rollup(pid)
    identity_of_mem = FileIdentity(record.vmm.mem_device, record.vmm.mem_inode)
    memory, captured = forked.parts.memory, forked.parts.manifest.memory
    mode: ShareMode = memory.mode
    reason = memory.reason
    if captured.delta is not None and mode == "shared":
        mode, reason = "delta", f"{reason}; {format_bytes(captured.delta_bytes)} over it of its own"
    return Receipt(
        id=record.id,
        name=record.name,
        parent=record.parent,
        pid=pid,
        directory=str(directory),
        memory=MemoryReceipt(
            mode=mode,
            reason=reason,
            file=MEM_FILE,
            inode=mem.st_ino,
            links=mem.st_nlink,
            size_bytes=mem.st_size,
            delta_bytes=captured.delta_bytes,
            pss_bytes=whole.pss_bytes,
            private_dirty_bytes=whole.private_dirty_bytes,
            guest_private_bytes=private_bytes(pid, record.vmm.ram, identity_of_mem),
            immutability=immutability(context.driver(record.driver)),
        ),
        disks=[_disk_receipt(disk, forked.captured) for disk in forked.parts.disks],
        bases=[
            _base_receipt(directory, base, given)
            for base, given in zip(forked.parts.manifest.machine.bases, forked.parts.bases, strict=True)
        ],
        identity=IdentityReceipt(
            generation=identity.generation,
            hostname=identity.hostname,
            machine_id=identity.machine_id,
            boot_random=identity.boot_random.hex(),
            clock_error_ms=round(identity.clock_error_ms, 3),
            addresses=list(identity.addresses),
            vmgenid=record.machine.vmgenid,
        ),
        timings_ms=forked.timings,
        warm=forked.warm,
    )


def _base_receipt(directory: Path, base: Base, given: Shared) -> BaseReceipt:
    file = (directory / base.file).stat()
    return BaseReceipt(
        name=base.name, mode=given.mode, reason=given.reason, inode=file.st_ino, links=file.st_nlink
    )


def _disk_receipt(forked: ForkedDisk, captured: Captured | None) -> DiskReceipt:
    whole = with_capture(forked, captured.disks.get(forked.disk.name) if captured is not None else None)
    return DiskReceipt(
        name=whole.disk.name, mode=whole.mode, reason=whole.reason, bytes_copied=whole.bytes_copied
    )
