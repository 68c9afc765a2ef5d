"""The end of an instance: stopped, discarded or removed, and what killed ramet processes left behind.

Delete is row, then sweep (I2): a directory without a record belongs to nobody, and any ramet process may
sweep it.
"""

from __future__ import annotations

import shutil
from collections.abc import Coroutine, Iterable
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from ramet.engine.context import Context
from ramet.engine.observe import observe
from ramet.engine.proof import agent_of
from ramet.errors import RametError, WrongStateError
from ramet.host import processes, rings
from ramet.model.lifecycle import Move, State
from ramet.model.record import Record
from ramet.paths import CONSOLE_LOG, VMM_LOG

STOP_LIMIT_S = 10.0
_SWEEPS_AT_ONCE = 8


async def stop(context: Context, record: Record, *, limit_s: float = STOP_LIMIT_S) -> Record:
    """Power the guest off, or end its VMM when that takes longer than `limit_s`. Disks are kept, memory is
    gone.

    An instance made with `--rm` is removed then. Raises `WrongStateError` for a template and for what is
    stopped already.
    """
    async with context.lifecycle(record):
        record = context.store.get(record.id)
        observed = observe(context, record).record
        if observed.state is not State.STOPPED or record.state is State.STOPPED:
            observed.moved(Move.STOP)
        if record.vmm is not None:
            if observed.state is State.RUNNING:
                await _power_off(context, record, limit_s)
            await processes.kill(record.vmm.process)
        stopped = context.store.change(record.id, _stopped)
    if stopped.auto_remove:
        await discard(context, stopped)
    return stopped


def _stopped(record: Record) -> Record:
    return record if record.state is State.STOPPED else record.moved(Move.STOP)


async def _power_off(context: Context, record: Record, limit_s: float) -> None:
    assert record.vmm is not None
    try:
        with anyio.move_on_after(limit_s):
            async with agent_of(context, record, record.vmm.process, timeout_s=limit_s) as agent:
                await agent.shutdown()
            await processes.wait_ended(record.vmm.process)
    except RametError:
        pass  # it doesn't answer, or went while it was asked: killing it is what comes next anyway


async def remove(context: Context, record: Record, *, force: bool) -> None:
    """Remove an instance: its record, its VMM, its directory. Its forks don't notice (I3).

    Raises `WrongStateError` when it is alive and `force` isn't given.
    """
    alive = observe(context, context.store.get(record.id)).record.vmm is not None
    if alive and not force:
        raise WrongStateError(
            f"{record.name} is running", hint=f"`ramet rm -f {record.name}` ends and removes it"
        )
    await discard(context, record)


async def discard(context: Context, record: Record) -> None:
    """Remove an instance in whatever state it is.

    Goes on past its own errors and raises the first at the end.
    """
    context.store.remove(record.id)
    context.ours.discard(record.id)
    if record.vmm is not None:
        await processes.kill(record.vmm.process)
        await _remove(context.directory(record))
    else:
        await sweep(context.directory(record))


async def discard_all(context: Context, records: Iterable[Record]) -> None:
    """Discard several, a few at a time, whatever befalls one of them (I7).

    Shielded from cancellation; raises the first error at the end.
    """
    errors: list[Exception] = []
    limiter = anyio.CapacityLimiter(_SWEEPS_AT_ONCE)

    async def one(record: Record) -> None:
        async with limiter:
            try:
                await discard(context, record)
            except (RametError, OSError) as error:
                errors.append(error)

    with anyio.CancelScope(shield=True):
        async with anyio.create_task_group() as tasks:
            for record in records:
                tasks.start_soon(one, record)
    if errors:
        raise errors[0]


async def sweep(directory: Path) -> None:
    """End whatever still works in a directory that nobody owns any more, and remove it."""
    for process in processes.working_in(directory):
        await processes.kill(process)
    await _remove(directory)


async def _remove(directory: Path) -> None:
    if directory.exists():
        await anyio.to_thread.run_sync(_remove_tree, directory)


def _remove_tree(directory: Path) -> None:
    # Another process may be sweeping the same directory.
    shutil.rmtree(directory, onerror=lambda function, path, info: _unless_gone(info[1]))


def _unless_gone(error: BaseException) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


async def reap(context: Context) -> None:
    """Undo what killed ramet processes left: instances whose owner is dead, `--rm` instances that have
    stopped, directories without a record.

    Called when a home is opened, which is also when logs that have grown are cut to rings. One failure
    doesn't stop the rest: what can't be removed now is tried again next time.
    """
    # Directories first: each that has an owner got its record before it was made.
    directories = list(context.home.instances.iterdir())
    records = context.store.all()
    for record in records:
        for log in (CONSOLE_LOG, VMM_LOG):
            rings.trim(context.directory(record) / log)
        orphaned = record.owner is not None and not processes.is_alive(record.owner)
        finished = record.auto_remove and observe(context, record).record.state in {
            State.STOPPED,
            State.FAILED,
        }
        if orphaned or finished:
            await _attempt(discard(context, record))
    known = {record.id for record in records}
    for directory in directories:
        if directory.name not in known:
            await _attempt(sweep(directory))


async def _attempt(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except (RametError, OSError):
        pass
