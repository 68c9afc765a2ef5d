"""Open a home: what killed ramet processes left in it is undone or finished first."""

from __future__ import annotations

from contextlib import AsyncExitStack

import msgspec

from ramet import config
from ramet.calls import Calls
from ramet.concurrency import best_effort
from ramet.engine.agent.session import correct_clock
from ramet.engine.background import Background
from ramet.engine.boot_snapshots import cache as boot_snapshots
from ramet.engine.capture.overlays import drop_unused_overlays, with_disks_as_they_are
from ramet.engine.capture.publish import drop_unpublished
from ramet.engine.context import Context
from ramet.engine.drivers import installed_drivers
from ramet.engine.lifecycle.removal import destroy, destroy_all, drop_capture, gc
from ramet.engine.lifecycle.resize import finish_resize
from ramet.engine.lifecycle.state import state_of, why_unseen
from ramet.engine.maintenance import memory_jobs
from ramet.engine.maintenance.requests import request_if_left
from ramet.engine.pool import directory as pool_directory
from ramet.engine.restore.in_place import finish_replace
from ramet.engine.snapshots import catalog
from ramet.engine.vmm import logs
from ramet.errors import UnavailableError, VmmError
from ramet.guest.agents import Agents
from ramet.model.lifecycle import Move, State
from ramet.model.record import ProcessRef, Record
from ramet.paths import Home
from ramet.store.records import Store
from ramet.system import liveness, owners, process_ref, processes, spawn, threads
from ramet.system.filesystems import require_local, require_short
from ramet.system.publishing import spread
from ramet.system.rlimits import raise_open_files_limit


async def open_home(home: Home, accel: str, exits: AsyncExitStack) -> Context:
    """Open a home, make it if there is none, and undo what killed ramet processes left in it.

    Everything to be closed again is pushed onto `exits`. This process's limit on open files is raised as far
    as allowed. Raises `UnavailableError` and `StoreError`, as opening a Host does.
    """
    raise_open_files_limit()
    require_local(home.places)
    require_short(home.root)
    try:
        home.make()
    except OSError as error:
        raise UnavailableError(
            f"the home {home.root} can't be used: {error.strerror}",
            hint="set RAMET_HOME to a directory of yours",
        ) from error
    for directory in (home.instances, home.staging):
        spread(directory)
    exits.enter_context(owners.attended(home.root))
    store = Store(home.database)
    exits.callback(store.close)
    background = Background()
    exits.push_async_callback(background.close)
    tasks = await background.start()
    drivers = {driver.name: driver for driver in installed_drivers()}
    context = Context(home, config.cache_directory(), store, drivers, Agents(tasks), tasks, accel, Calls())
    await recover_home(context)
    tasks.start_soon(owners.keep_watched, home.root)
    tasks.start_soon(logs.keep_trimmed, home)
    return context


async def recover_home(context: Context) -> None:
    """Undo what killed ramet processes left in a home.

    That is: changes half done, VMMs that no record names, instances whose owner is dead, `--rm` instances
    that have stopped, directories without a record. Called when a home is opened, which is also when logs
    that have grown are trimmed. One failure doesn't stop the rest: what can't be removed now is tried again
    next time.
    """
    # Directories first: each that has an owner got its record before it was made.
    directories = [*context.home.instances.iterdir(), *context.home.staging.iterdir()]
    of_snapshots = list(context.home.snapshots.iterdir())
    records, unreadable = context.store.rows()
    dead = {owner for owner in {record.owner for record in records} if owner is not None and _is_dead(owner)}
    # First, and all at once: there may be a thousand. Asked again inside: one may have been detached since,
    # by the process that then ended.
    doomed = [record for record in records if record.owner in dead]
    await best_effort(destroy_all(context, doomed, only_if=lambda row: row.owner in dead))
    for record in records:
        if record.owner not in dead:
            await best_effort(_recover_instance(context, record))
    await best_effort(pool_directory.gc(context.home))
    await best_effort(end_orphans(context))
    # What belongs to a row that can't be read isn't without a record: its guest may run.
    known = {record.id for record in records} | {row.id for row in unreadable}
    await best_effort(gc([directory for directory in directories if directory.name not in known]))
    await catalog.gc(context, of_snapshots)
    await best_effort(memory_jobs.gc(context.home))
    await best_effort(boot_snapshots.gc(context.home))
    await request_if_left(context.home)


def _is_dead(process: ProcessRef) -> bool:
    try:
        return liveness.is_dead(process)
    except UnavailableError:
        return False  # it can't be looked at: the next ramet process does


async def _recover_instance(context: Context, record: Record) -> None:
    if record.pending is not None and liveness.is_dead(record.pending.by):
        await recover(context, record)
    if record.auto_remove and state_of(context, record).record.state in {State.STOPPED, State.FAILED}:
        await destroy(context, record, only_if=lambda row: row == record)
    else:
        logs.trim(context.directory(record))


async def recover(context: Context, record: Record) -> None:
    """Finish or undo the change that a killed process was in the middle of.

    Nothing happens when another process has.
    """
    async with context.lifecycle(record):
        record = context.store.get(record.id)
        if record.pending is None or not liveness.is_dead(record.pending.by):
            return
        if record.pending.what in {"restore", "rewind"}:
            # First: how its VMM ended is said in the directory that it works in.
            await finish_replace(context, record)
        fact = state_of(context, record).record
        match record.pending.what:
            case "stop" if fact.state is not State.STANDBY:  # an instance in standby hadn't lost anything yet
                # It was asked to go: it goes.
                reason = None
                if fact.vmm is not None:
                    await processes.kill(fact.vmm.process)
                    reason = "killed: the ramet process that was stopping it had been killed"
                fact = fact if fact.state is State.STOPPED else fact.moved(Move.STOP, reason=reason)
                await threads.run(drop_capture, context.directory(record))
            case "resize":
                fact = await finish_resize(context, fact)
            case "pause" | "resume" | "template" | "standby" | "capture" if fact.vmm is not None:
                fact = await _as_the_vmm_says(context, record)
            case _:
                pass  # start, or the VMM is gone: leftovers without a record are deleted as orphans
        # Last: a VMM that was told to save makes its files when it gets to it.
        drop_unpublished(context.directory(record), record.vmm)
        context.store.change(
            record.id,
            lambda row: msgspec.structs.replace(
                row, state=fact.state, vmm=fact.vmm, reason=fact.reason, machine=fact.machine, pending=None
            ),
        )


async def _as_the_vmm_says(context: Context, record: Record) -> Record:
    """Return the record of an instance by what its VMM says.

    An instance that ran before a capture began is resumed, and its disks' actual files are recorded; a pause
    or a resume that was begun has happened or not.
    """
    vmm = context.vmm(record)
    if record.pending is not None and record.pending.what in {"template", "standby", "capture"}:
        if record.state is State.RUNNING:
            try:
                await vmm.resume()
            except VmmError:
                return record.moved(Move.PAUSE, vmm=record.vmm)  # as `resume_guest`
            record = msgspec.structs.replace(record, reason=await correct_clock(context, record))
        try:
            record = await with_disks_as_they_are(record, vmm)
            await drop_unused_overlays(context.directory(record), record, vmm)
        except VmmError:
            pass  # the recorded disks are used; an unneeded overlay does no harm
        return record
    try:
        runs = await vmm.status() == "running"
    except VmmError:
        return record  # the record is the best knowledge
    if runs == (record.state is State.RUNNING):
        return record
    if not runs:
        return record.moved(Move.PAUSE, vmm=record.vmm)
    return record.moved(Move.RESUME, vmm=record.vmm, reason=await correct_clock(context, record))


async def end_orphans(context: Context) -> None:
    """End VMMs that no record names: a killed ramet had started them and not yet recorded them.

    Processes are listed before records: a process that starts a VMM has written an intent into the record
    before, and names the VMM there before the intent is cleared. A warm VMM works in the pool's directory
    until it has a record.
    """
    spawned = spawn.spawned_below(context.home.instances)
    if not spawned:
        return
    readable, unreadable = context.store.rows()
    records = {context.directory(record): record for record in readable}
    unknown = {row.id for row in unreadable}
    for directory, running in spawned.items():
        record = records.get(directory)
        if record is not None and (_is_being_made(record) or why_unseen(record) is not None):
            continue  # of what can't be seen it can't be told which VMM is its own, either
        if record is None and directory.name in unknown:
            continue  # its row can't be read, and may well name it
        for process in running:
            # Without a record: removed by force, while it was being restored by a ramet that then died.
            if record is None or record.vmm is None or not process_ref.is_same(record.vmm.process, process):
                await processes.kill(process)


def _is_being_made(record: Record) -> bool:
    by = record.owner if record.state is State.CREATED else record.pending.by if record.pending else None
    return by is not None and not liveness.is_dead(by)
