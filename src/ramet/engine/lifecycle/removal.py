"""The end of an instance: destroyed or removed. `gc` deletes the directories that nobody owns.

Delete is row, then directory (I2): a directory without a record belongs to nobody, and any ramet process may
delete it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import anyio
import msgspec

from ramet.engine.context import Context
from ramet.engine.lifecycle.state import listens, require_seen, state_of, why_unseen
from ramet.errors import NotFoundError, RametError, StoreError, WrongStateError
from ramet.model.lifecycle import State
from ramet.model.record import ProcessRef, Record
from ramet.paths import CONFIRMED_FILE, DELTA_FILE, MANIFEST_FILE, MEM_FILE, VMSTATE_FILE
from ramet.system import liveness, owners, processes, spawn, threads
from ramet.system.files import filesystem_errors, remove_tree
from ramet.system.ownership import require_endable, require_removable

_AT_ONCE = 8


async def remove(context: Context, record: Record, *, force: bool, lost: bool = False) -> None:
    """Remove an instance: its record, its VMM, its directory. Its forks don't notice (I3).

    `lost`: also when its VMM can't be seen from here, because the machine or the container where it was
    started no longer exists. Raises `WrongStateError` when it is alive, or being made or changed by another
    process, and `force` isn't given; `UnseenError` when that can't be seen and it isn't `lost`;
    `UnavailableError` when it is another user's. Nothing was removed then.
    """
    if lost:
        await _forget(context, context.store.get(record.id), force=force)
        return
    if force:
        await destroy(context, record)
        return
    record = context.store.get(record.id)
    now = state_of(context, record).record
    require_seen(now)
    if now.vmm is not None or now.state is State.CREATED or now.pending is not None:
        raise WrongStateError(
            f"{record.name} is {'being changed' if now.pending else now.state}",
            hint=f"`ramet rm -f {record.name}` ends and removes it",
        )
    if not await destroy(context, record, only_if=lambda row: row == record):
        raise WrongStateError(f"{record.name} has just been changed by another process", hint="try again")


async def destroy(
    context: Context, record: Record, *, only_if: Callable[[Record], bool] | None = None
) -> bool:
    """Remove an instance in any state; False when it is gone already or `only_if` says no.

    Nothing is done when it may not be removed from here: `UnseenError`, or `UnavailableError` when it is
    another user's. Otherwise each step is taken, even if the step before failed: its VMM ends also when the
    record can't be deleted, on a full disk for example. The first error is raised at the end.
    """
    errors: list[Exception] = []
    try:
        removed = _take_out(context, record.id, only_if)
    except StoreError as error:
        if only_if is not None:
            raise
        errors.append(error)
        removed = record
    if removed is None:
        return False
    await _clear_away(context, [removed], errors)
    if errors:
        raise errors[0]
    return True


def _take_out(context: Context, row_id: str, only_if: Callable[[Record], bool] | None) -> Record | None:
    """Remove the row, if this process may remove the instance. Returns the old row, with the VMM to end.

    None when it is gone already, or `only_if` says no. Raises `UnseenError`, `UnavailableError`,
    `StoreError`; the row is still there then.
    """
    owners.watch(context.home.root)  # a row that is gone names no VMM any more
    try:
        row = context.store.get(row_id)
        while only_if is None or only_if(row):
            fact = _require_removable(context, row)
            removed = context.store.remove(row_id, only_if=partial(_still, row=row, only_if=only_if))
            if removed is not None:
                return msgspec.structs.replace(removed, vmm=fact.vmm)
            # It may have got another VMM meanwhile, which has to be looked at, too.
            row = context.store.get(row_id)
    except NotFoundError:
        pass
    return None


def _still(present: Record, *, row: Record, only_if: Callable[[Record], bool] | None) -> bool:
    return present.vmm == row.vmm and (only_if is None or only_if(present))


def _require_removable(context: Context, record: Record) -> Record:
    """Return the record in its actual state, if this process may end its VMM and remove its directory.

    Raises `UnseenError`, `UnavailableError` when it is another user's.
    """
    fact = state_of(context, record).record
    require_seen(fact)
    if fact.vmm is not None:
        require_endable(fact.vmm.process, name=record.name)
    require_removable(context.directory(record), name=record.name)
    return fact


async def _forget(context: Context, record: Record, *, force: bool) -> None:
    """Remove an instance whose VMM can't be seen, and isn't ended: it ended with its machine.

    Refused if a process of the instance still answers.
    """
    if why_unseen(record) is None:
        await remove(context, record, force=force)
        return
    if (record.vmm is not None and liveness.is_alive(record.vmm.process)) or listens(context, record):
        raise WrongStateError(
            f"{record.name} isn't lost: its VMM answers on this machine",
            hint="`ramet ps` in its container, or on the host, shows it; remove it there",
        )
    require_removable(context.directory(record), name=record.name)
    owners.watch(context.home.root)
    errors: list[Exception] = []
    removed = context.store.remove(record.id, only_if=lambda row: row == record)
    if removed is None:
        raise WrongStateError(f"{record.name} has just been changed by another process", hint="try again")
    await _clear_away(context, [msgspec.structs.replace(removed, vmm=None)], errors)
    if errors:
        raise errors[0]


async def destroy_all(
    context: Context, records: Iterable[Record], *, only_if: Callable[[Record], bool] | None = None
) -> None:
    """Destroy several instances, each independent of the others' errors (I7).

    The VMM that a given record names is ended even if its row has no VMM yet, or is gone; `only_if` limits
    this to existing rows of which it says yes. Instances that may not be removed from here, another user's
    and unseen ones, are left alone. Shielded from cancellation; raises the first error at the end.
    """
    errors: list[Exception] = []
    unwanted = list(records)
    if not unwanted:
        return
    with anyio.CancelScope(shield=True):
        owners.watch(context.home.root)
        unwanted = _removable(context, unwanted, errors)
        try:
            removed = context.store.remove_all((record.id for record in unwanted), only_if=only_if)
            unwanted = unwanted if only_if is None else removed
        except StoreError as error:
            errors.append(error)
            removed = []
            # Their guests end also when nothing can be written down.
            unwanted = unwanted if only_if is None else _still_wished(context, unwanted, only_if)
        # Also instances that another process removed meanwhile, perhaps before there was a VMM to end.
        known = {record.id: record for record in removed if record.vmm is not None}
        await _clear_away(context, [known.get(record.id, record) for record in unwanted], errors)
    if errors:
        raise errors[0]


def _removable(context: Context, unwanted: Sequence[Record], errors: list[Exception]) -> list[Record]:
    """Return the records of `unwanted` that this process may remove, unchanged."""
    try:
        rows = {row.id: row for row in context.store.all()}
    except StoreError:
        rows = {}  # the given records are used: guests end also when nothing can be recorded
    removable = []
    for record in unwanted:
        try:
            _require_removable(context, rows.get(record.id, record))
            removable.append(record)
        except RametError as error:
            errors.append(error)
    return removable


def _still_wished(
    context: Context, unwanted: Sequence[Record], only_if: Callable[[Record], bool]
) -> list[Record]:
    ids = {record.id for record in unwanted}
    try:
        return [row for row in context.store.all() if row.id in ids and only_if(row)]
    except StoreError:
        return []


async def _clear_away(context: Context, removed: Sequence[Record], errors: list[Exception]) -> None:
    """End the VMMs of instances that have no record any more, and remove their directories.

    All are killed before any is waited for: a thousand take the kernel a while. All the system's processes
    are examined once, for unnamed processes that belong to one of the instances.
    """
    if not removed:
        return
    context.ours.difference_update(record.id for record in removed)
    limiter = anyio.CapacityLimiter(_AT_ONCE)

    async def limited(step: Awaitable[None]) -> None:
        async with limiter:
            await _collect(errors, step)

    named = [record.vmm.process for record in removed if record.vmm is not None]
    _strike_all(named)
    directories = [
        place for record in removed for place in (context.directory(record), context.home.staged(record.id))
    ]
    # In a thread: of a thousand processes that takes 0.1 s, and another guest may stay paused for a capture.
    spawned = await threads.run(spawn.spawned_below, context.home.instances, context.home.staging)
    _strike_all(process for directory in directories for process in spawned.get(directory, ()))
    async with anyio.create_task_group() as tasks:
        for process in named:
            tasks.start_soon(limited, processes.kill(process))
    async with anyio.create_task_group() as tasks:
        for directory in directories:
            tasks.start_soon(limited, _gc_directory(directory, spawned.get(directory, ())))


def _strike_all(running: Iterable[ProcessRef]) -> None:
    for process in running:
        with suppress(RametError):  # the wait for its end reports it
            processes.strike(process)


async def gc(directories: Sequence[Path]) -> None:
    """End every VMM of directories that have no owner any more, and remove the directories.

    One failure doesn't stop the rest; the first error is raised at the end. All the system's processes are
    examined once.
    """
    errors: list[Exception] = []
    if not directories:
        return
    limiter = anyio.CapacityLimiter(_AT_ONCE)
    places = sorted({directory.parent for directory in directories})
    spawned = await threads.run(spawn.spawned_below, *places)
    _strike_all(process for directory in directories for process in spawned.get(directory, ()))

    async def limited(directory: Path) -> None:
        async with limiter:
            if directory.is_file():
                directory.unlink(missing_ok=True)  # a link made on trial, by a ramet that was killed then
            else:
                await _collect(errors, _gc_directory(directory, spawned.get(directory, ())))

    async with anyio.create_task_group() as tasks:
        for directory in directories:
            tasks.start_soon(limited, directory)
    if errors:
        raise errors[0]


async def _gc_directory(directory: Path, running: Iterable[ProcessRef]) -> None:
    errors: list[Exception] = []
    for process in running:
        await _collect(errors, processes.kill(process))
    if directory.exists():
        await _collect(errors, threads.run(remove_tree, directory))
    if errors:
        raise errors[0]


async def _collect(errors: list[Exception], step: Awaitable[None]) -> None:
    try:
        await step
    except (RametError, OSError) as error:
        errors.append(error)


def drop_capture(directory: Path) -> None:
    """Remove the memory that an instance was captured with: it is stopped. Its disks stay."""
    with filesystem_errors("remove the memory in", directory):
        for part in (MANIFEST_FILE, CONFIRMED_FILE, VMSTATE_FILE, DELTA_FILE):
            (directory / part).unlink(missing_ok=True)
        for memory in directory.glob(f"{MEM_FILE}*"):  # of a compaction, compressed
            memory.unlink(missing_ok=True)
