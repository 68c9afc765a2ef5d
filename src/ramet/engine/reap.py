"""Open a home: what killed ramet processes left in it is undone or finished first."""

from __future__ import annotations

from contextlib import AsyncExitStack

from ramet import config
from ramet.calls import Calls
from ramet.concurrency import best_effort
from ramet.engine import compressing, pool, snapshots
from ramet.engine.agents import Agents
from ramet.engine.background import Background
from ramet.engine.changes import end_orphans, recover
from ramet.engine.context import Context
from ramet.engine.drivers import installed_drivers
from ramet.engine.observe import observe
from ramet.engine.removal import discard, discard_all, sweep
from ramet.engine.worker import wake_if_left
from ramet.errors import UnavailableError
from ramet.host import owners, processes, rings
from ramet.host.files import spread
from ramet.host.filesystems import require_local, require_short
from ramet.host.processes import raise_open_files_limit
from ramet.model.lifecycle import State
from ramet.model.record import ProcessRef, Record
from ramet.paths import CONSOLE_LOG, VMM_LOG, Home
from ramet.store.records import Store


async def open_home(home: Home, accel: str, exits: AsyncExitStack) -> Context:
    """Open a home, making it if need be, and undo what killed ramet processes left in it.

    Whatever has to be closed again is pushed onto `exits`. This process's limit on open files is raised to
    what it may be. Raises `UnavailableError` and `StoreError`, as opening a Host does.
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
    await reap(context)
    tasks.start_soon(owners.keep_watched, home.root)
    return context


async def reap(context: Context) -> None:
    """Undo what killed ramet processes left: changes half done, VMMs that no record names, instances whose
    owner is dead, `--rm` instances that have stopped, directories without a record.

    Called when a home is opened, which is also when logs that have grown are cut to rings. One failure
    doesn't stop the rest: what can't be removed now is tried again next time.
    """
    # Directories first: each that has an owner got its record before it was made.
    directories = [*context.home.instances.iterdir(), *context.home.staging.iterdir()]
    of_snapshots = list(context.home.snapshots.iterdir())
    records, unreadable = context.store.rows()
    dead = {owner for owner in {one.owner for one in records} if owner is not None and _is_dead(owner)}
    # First, and all at once: there may be a thousand. Asked again inside: one may have been detached since,
    # by the process that then ended.
    doomed = [one for one in records if one.owner in dead]
    await best_effort(discard_all(context, doomed, only_if=lambda row: row.owner in dead))
    for record in records:
        if record.owner not in dead:
            await best_effort(_reap_one(context, record))
    await best_effort(pool.sweep(context.home))
    await best_effort(end_orphans(context))
    # What belongs to a row that can't be read isn't without a record: its guest may run.
    known = {record.id for record in records} | {row.id for row in unreadable}
    await best_effort(sweep([directory for directory in directories if directory.name not in known]))
    await snapshots.reap(context, of_snapshots)
    await best_effort(compressing.sweep(context.home))
    await wake_if_left(context.home)


def _is_dead(process: ProcessRef) -> bool:
    try:
        return processes.is_dead(process)
    except UnavailableError:
        return False  # it can't be looked at: the next ramet process does


async def _reap_one(context: Context, record: Record) -> None:
    if record.pending is not None and processes.is_dead(record.pending.by):
        await recover(context, record)
    if record.auto_remove and observe(context, record).record.state in {State.STOPPED, State.FAILED}:
        await discard(context, record, only_if=lambda one: one == record)
    else:
        for log in (CONSOLE_LOG, VMM_LOG):
            rings.trim(context.directory(record) / log)
