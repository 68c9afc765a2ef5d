"""Changes to an instance that take more than one step: begun, finished, and undone when ramet was killed in
between.

Under the instance's lock the record says what is being done and by which process. If that process dies, the
next one to open the home finds its mark and finishes or undoes the change.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec

from ramet.disk.volumes import files_of
from ramet.drivers.api import FreezesDisks, Vmm
from ramet.engine.compressing import TEMPORARY
from ramet.engine.context import Context
from ramet.engine.observe import observe, require_seen, why_unseen
from ramet.engine.removal import drop_capture
from ramet.engine.session import correct_clock
from ramet.engine.staged import settle_replacement
from ramet.errors import NotFoundError, VmmError, WrongStateError
from ramet.host import owners, processes, threads
from ramet.host.files import TEMPORARY_PREFIX
from ramet.memory.mappings import identity_of
from ramet.model.lifecycle import Move, State
from ramet.model.record import Change, Pending, Record, RunningVmm
from ramet.paths import DELTA_FILE, MANIFEST_FILE, MEM_FILE, VMSTATE_FILE


@asynccontextmanager
async def changing(context: Context, record: Record, what: Change) -> AsyncIterator[Record]:
    """Hold the instance's lock, with its record as it is in fact, marked as being changed by this process.

    Raises `NotFoundError` when it has been removed, `WrongStateError` when another change doesn't end,
    `UnseenError` when its VMM can't be seen from here, nor who is changing it. The mark goes whatever happens
    inside; the state is for the caller to change.
    """
    async with context.lifecycle(record) as lock:
        fact = observe(context, context.store.get(record.id)).record
        require_seen(fact)
        pending = Pending(what=what, by=owners.owner(context.home.root))
        marked = context.store.change(
            record.id,
            lambda one: msgspec.structs.replace(
                one, state=fact.state, vmm=fact.vmm, reason=fact.reason, pending=pending
            ),
        )
        context.locks[record.id] = lock
        try:
            yield marked
        finally:
            del context.locks[record.id]
            _unmark(context, record)


def _unmark(context: Context, record: Record) -> None:
    try:
        context.store.change(record.id, lambda one: msgspec.structs.replace(one, pending=None))
    except NotFoundError:
        pass  # removed meanwhile


async def let_go_on(context: Context, record: Record, vmm: Vmm) -> None:
    """A guest that stood still for a change goes on.

    Raises `VmmError` when its VMM can't be told. If that lives, the record says that the guest is paused: it
    can be resumed by whoever finds the VMM in a better state.
    """
    try:
        await vmm.resume()
    except VmmError as error:
        if record.vmm is None or processes.is_dead(record.vmm.process):
            raise
        with suppress(NotFoundError, WrongStateError):  # removed, or changed by force meanwhile
            context.store.change(record.id, lambda one: one.moved(Move.PAUSE, vmm=one.vmm))
        raise type(error)(
            f"{record.name} stands still, and its VMM doesn't let it go on: {error.message}",
            hint=f"`ramet resume {record.name}` tries again",
        ) from error


async def recover(context: Context, record: Record) -> None:
    """Finish or undo the change that a killed process was in the middle of.

    Nothing happens when another process has.
    """
    async with context.lifecycle(record):
        record = context.store.get(record.id)
        if record.pending is None or not processes.is_dead(record.pending.by):
            return
        if record.pending.what in {"restore", "rewind"}:
            # First: how its VMM ended is said in the directory that it works in.
            await settle_replacement(context, record)
        fact = observe(context, record).record
        match record.pending.what:
            case "stop" if fact.state is not State.STANDBY:  # what is in standby hadn't lost anything yet
                # It was asked to go: it goes.
                reason = None
                if fact.vmm is not None:
                    await processes.kill(fact.vmm.process)
                    reason = "killed: the ramet process that was stopping it had been killed"
                fact = fact if fact.state is State.STOPPED else fact.moved(Move.STOP, reason=reason)
                await threads.run(drop_capture, context.directory(record))
            case "pause" | "resume" | "template" | "standby" | "capture" if fact.vmm is not None:
                fact = await _as_the_vmm_says(context, record)
            case _:
                pass  # start, or the VMM is gone: what it left without a record is swept as an orphan
        # Last: a VMM that was told to save makes its files when it gets to it.
        drop_unpublished(context.directory(record), record.vmm)
        context.store.change(
            record.id,
            lambda one: msgspec.structs.replace(
                one, state=fact.state, vmm=fact.vmm, reason=fact.reason, machine=fact.machine, pending=None
            ),
        )


async def _as_the_vmm_says(context: Context, record: Record) -> Record:
    """An instance that ran before a capture was begun of it goes on, its disks in whichever files they are; a
    pause or a resume that was begun has happened or not.
    """
    vmm = context.vmm(record)
    if record.pending is not None and record.pending.what in {"template", "standby", "capture"}:
        if record.state is State.RUNNING:
            try:
                await vmm.resume()
            except VmmError:
                return record.moved(Move.PAUSE, vmm=record.vmm)  # as `let_go_on`
            record = msgspec.structs.replace(record, reason=await correct_clock(context, record))
        try:
            record = await with_disks_as_they_are(record, vmm)
            await _drop_unused_overlays(context.directory(record), record, vmm)
        except VmmError:
            pass  # what is known of the disks by now holds; an overlay too many is in nobody's way
        return record
    try:
        runs = await vmm.status() == "running"
    except VmmError:
        return record  # what it says is as good as anything that is known
    if runs == (record.state is State.RUNNING):
        return record
    if not runs:
        return record.moved(Move.PAUSE, vmm=record.vmm)
    return record.moved(Move.RESUME, vmm=record.vmm, reason=await correct_clock(context, record))


async def with_disks_as_they_are(record: Record, vmm: Vmm) -> Record:
    """`record` with the files that its disks are really in: a capture may have switched them and then
    died.
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


async def _drop_unused_overlays(directory: Path, record: Record, vmm: Vmm) -> None:
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


def drop_unpublished(directory: Path, vmm: RunningVmm | None) -> None:
    """Remove what an unfinished publication left in the directory of an instance that is no capture.

    A VMM has no use for a mem-file that was saved from it, which may be as large as its guest's RAM: the one
    that it has mapped stays, with or without a name.
    """
    for leftover in directory.glob(f"{TEMPORARY_PREFIX}*"):
        if not leftover.name.startswith(TEMPORARY):  # whoever compresses or unpacks may live
            leftover.unlink(missing_ok=True)
    if vmm is not None:
        for part in (MANIFEST_FILE, DELTA_FILE, *(() if vmm.mem_inode else (MEM_FILE, VMSTATE_FILE))):
            (directory / part).unlink(missing_ok=True)
        mem = directory / MEM_FILE
        if mem.exists() and identity_of(mem) != (vmm.mem_device, vmm.mem_inode):
            mem.unlink()


async def end_orphans(context: Context) -> None:
    """End VMMs that no record names: a killed ramet had started them and not yet written them down.

    Processes are listed before records: whoever starts a VMM has marked its record before, and names the VMM
    in it before the mark goes. A warm VMM works in the pool's directory, until there is a record for it.
    """
    found = processes.spawned_below(context.home.instances)
    if not found:
        return
    readable, unreadable = context.store.rows()
    records = {context.directory(record): record for record in readable}
    unknown = {row.id for row in unreadable}
    for directory, running in found.items():
        record = records.get(directory)
        if record is not None and (_is_being_made(record) or why_unseen(record) is not None):
            continue  # of what can't be seen it can't be told which VMM is its own, either
        if record is None and directory.name in unknown:
            continue  # its row can't be read, and may well name it
        for process in running:
            # Without a record: removed by force, while it was being brought up by a ramet that then died.
            if record is None or record.vmm is None or not processes.is_same(record.vmm.process, process):
                await processes.kill(process)


def _is_being_made(record: Record) -> bool:
    by = record.owner if record.state is State.CREATED else record.pending.by if record.pending else None
    return by is not None and not processes.is_dead(by)
