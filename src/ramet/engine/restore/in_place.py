"""Restore and rewind: a new VMM is restored from a capture, and replaces the instance's old VMM.

The new VMM works in a staged directory until its guest's identity is verified. Then the row names it, the two
directories change names at once, and the old state is removed: only when the new VMM runs.
"""

from __future__ import annotations

import os
from pathlib import Path

import anyio
import msgspec

from ramet.concurrency import to_completion
from ramet.engine.context import Context
from ramet.engine.lifecycle.jobs import job
from ramet.engine.maintenance.decompression import raw_file_kept, unpacked
from ramet.engine.maintenance.memory_jobs import cancel
from ramet.engine.manifest import require_restorable
from ramet.engine.origin import Origin, origin_of, require_parts
from ramet.engine.restore.connections import connections
from ramet.engine.restore.load import Living, load, resume_and_verify, take_in_thread
from ramet.engine.restore.parts import ForkOptions
from ramet.engine.snapshots import catalog
from ramet.errors import NotFoundError, RametError
from ramet.model.lifecycle import Move
from ramet.model.record import Record
from ramet.model.snapshot import SnapshotRecord
from ramet.paths import CONSOLE_LOG, LIFECYCLE_LOCK
from ramet.system import process_ref, processes, spawn, threads
from ramet.system.files import filesystem_errors, remove_tree
from ramet.system.publishing import exchange

_CARRIED = (LIFECYCLE_LOCK, CONSOLE_LOG, f"{CONSOLE_LOG}.1")
"""Files that an instance keeps in every state. The lock is held: the same file has to be found."""


async def restore(context: Context, record: Record) -> Record:
    """Restore an instance from standby, with a new generation. Its capture is removed then.

    Raises `WrongStateError` unless it is in standby, and as `load` and `resume_and_verify`; it is still in
    standby then.
    """
    async with job(context, record, "restore") as record:
        record.moved(Move.RESTORE)
        return await _replace(context, record, origin_of(context, record), Move.RESTORE)


async def rewind(context: Context, record: Record, snapshot: SnapshotRecord) -> Record:
    """Take an instance back to its own snapshot, with a new generation.

    Its state may be any but a template's. Raises `WrongStateError`, and as `load` and `resume_and_verify`;
    then the instance has its state from before, so it runs if it ran.
    """
    async with job(context, record, "rewind") as record:
        record.moved(Move.REWIND)
        origin = catalog.origin_of_snapshot(context, catalog.require_published(context, snapshot.id))
        return await _replace(context, record, origin, Move.REWIND)


async def _replace(context: Context, record: Record, origin: Origin, move: Move) -> Record:
    # Compression of memory that is needed now, or about to be removed, gives up.
    for directory in {origin.directory, context.directory(record)}:
        cancel(context.home, directory)
    async with raw_file_kept(origin):
        origin, _ = await unpacked(context, origin)
        return await _replace_from(context, record, origin, move)


async def _replace_from(context: Context, record: Record, origin: Origin, move: Move) -> Record:
    manifest = origin.manifest
    driver = context.driver(manifest.driver)
    await require_parts(origin)
    await require_restorable(manifest, driver, name=origin.name)
    own, staged = context.directory(record), context.home.staged(record.id)
    generation = max(record.generation, manifest.generation) + 1
    wanted = msgspec.structs.replace(
        record, machine=manifest.machine, generation=generation, main=manifest.main
    )
    living: Living | None = None
    try:
        await threads.run(remove_tree, staged)
        parts = await take_in_thread(origin, driver, staged, ForkOptions())
        _carry(own, staged)
        async with connections() as opened:
            loaded = await load(driver, staged, parts, opened, resume=True, tag=own)
            living = await resume_and_verify(context, wanted, staged, loaded, opened)
        entered = staged.stat().st_ino
        changed = _enter(context, living, move, entered)
    except BaseException:
        with anyio.CancelScope(shield=True):
            if living is not None:
                await living.vmm.kill()
            await threads.run(remove_tree, staged)
        raise
    await to_completion(_take_the_place(context, record, living, staged, entered))
    return changed


async def _take_the_place(
    context: Context, record: Record, living: Living, staged: Path, entered: int
) -> None:
    """Exchange the directories' names, and remove the old state."""
    own = context.directory(record)
    try:
        await threads.run(exchange, staged, own)
    except RametError:
        # A filesystem that can't, for example. Unless only the sync failed, nothing has changed.
        if not own.exists() or own.stat().st_ino != entered:
            await _leave(context, record, living)
            await threads.run(remove_tree, staged)
            raise
    if record.vmm is not None:
        await processes.kill(record.vmm.process)
    await threads.run(remove_tree, staged)


def _enter(context: Context, living: Living, move: Move, inode: int) -> Record:
    """Write the new VMM, and its future directory, into the row: from here on it is the instance."""
    new = living.record

    def entered(row: Record) -> Record:
        pending = msgspec.structs.replace(row.pending, staged=inode) if row.pending is not None else None
        return msgspec.structs.replace(
            row.moved(move, vmm=living.running),
            machine=new.machine,
            generation=new.generation,
            driver=new.driver,
            main=new.main,
            exit_code=None,
            pending=pending,
        )

    return context.store.change(new.id, entered, durable=True)


async def _leave(context: Context, record: Record, living: Living) -> None:
    """Write the old VMM into the row again, and end the new VMM."""
    try:
        context.store.change(
            record.id,
            lambda row: msgspec.structs.replace(
                row,
                state=record.state,
                vmm=record.vmm,
                reason=record.reason,
                machine=record.machine,
                generation=record.generation,
                driver=record.driver,
                main=record.main,
                exit_code=record.exit_code,
                pending=record.pending,
            ),
            durable=True,
        )
    except NotFoundError:
        pass  # removed by force meanwhile
    await living.vmm.kill()


def _carry(own: Path, staged: Path) -> None:
    with filesystem_errors("prepare", staged):
        for name in _CARRIED:
            try:
                os.link(own / name, staged / name)
            except FileNotFoundError:
                continue


async def finish_replace(context: Context, record: Record) -> None:
    """Finish a killed ramet's restore or rewind if the row names the new VMM, else undo it.

    The caller holds the instance's lock.
    """
    own, staged = context.directory(record), context.home.staged(record.id)
    entered = record.pending.staged if record.pending is not None else None
    if entered is not None and _is(staged, entered):
        await threads.run(exchange, staged, own)
    running = spawn.spawned_below(own.parent, staged.parent)
    for process in [*running.get(own, ()), *running.get(staged, ())]:
        if record.vmm is None or not process_ref.is_same(record.vmm.process, process):
            await processes.kill(process)
    await threads.run(remove_tree, staged)


def _is(directory: Path, inode: int) -> bool:
    """Tell whether the directory has that inode. Its VMM may have died with its ramet."""
    try:
        return directory.stat().st_ino == inode
    except FileNotFoundError:
        return False
