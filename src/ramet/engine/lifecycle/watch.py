"""Notice that an instance's VMM has ended, and start a restored guest that rebooted cold.

An open Host watches its own instances, at the cost of one pidfd each.
"""

from __future__ import annotations

from typing import Final

import anyio

from ramet.concurrency import best_effort
from ramet.drivers.interface import Ending
from ramet.engine.context import Context
from ramet.engine.lifecycle.boot import restart
from ramet.engine.lifecycle.removal import destroy
from ramet.engine.lifecycle.state import require_seen, state_of
from ramet.errors import NotFoundError, RametError
from ramet.model.lifecycle import Move, State
from ramet.model.record import Record
from ramet.system import liveness, processes

_MOST_ENDED: Final = 1000


async def refresh(context: Context, record: Record) -> Record:
    """Check an instance's record against its VMM, record the changes, and return the record.

    A restored guest that rebooted is started cold, as its user asked.
    """
    record = context.store.get(record.id)
    while record.pending is not None:
        if not liveness.is_dead(record.pending.by):
            if record.pending.what != "start":
                return state_of(context, record).record  # its state is another's to write
            async with context.lifecycle(record):  # it is about to run
                return state_of(context, context.store.get(record.id)).record
        # Who was at it may have finished, and ended, since the record was read.
        before, record = record, context.store.get(record.id)
        if record == before:
            break
    actual, ending = state_of(context, record)
    if ending is Ending.REBOOTED:
        return await restart(context, record)
    if ending is not None:
        return context.store.change(record.id, lambda row: actual if row == record else row)
    return actual


async def wait(context: Context, record: Record) -> Record:
    """Wait until an instance has no VMM any more, and return its record as it then is.

    A reboot isn't an end. Raises `UnseenError` when its VMM can't be seen from here, `NotFoundError` when
    somebody else removed it meanwhile.
    """
    try:
        record = await refresh(context, record)
        while record.vmm is not None:
            require_seen(record, to_change=False)
            await processes.wait_ended(record.vmm.process)
            record = await refresh(context, record)
    except NotFoundError:
        if (ended := context.ended.get(record.id)) is None:
            raise
        return ended
    return record


def watch(context: Context, record: Record) -> None:
    """Watch an instance for as long as its Host is open, or until it stops."""
    context.tasks.start_soon(_watch, context, record)


async def _watch(context: Context, record: Record) -> None:
    try:
        while record.vmm is not None:
            await processes.wait_ended(record.vmm.process)
            with anyio.CancelScope(shield=True):
                record = await refresh(context, record)
        if record.auto_remove and record.state in {State.STOPPED, State.FAILED}:
            await _remove(context, record)
    except NotFoundError:
        pass  # removed
    except Exception as error:
        # It can't be started again. That is this instance's trouble and not its Host's.
        reason = f"its guest rebooted, and it couldn't be started again: {error}"
        _note_failure(context, record, reason)


async def _remove(context: Context, record: Record) -> None:
    """Remove an instance that has ended by itself, unless another job has it. `wait` returns `record`."""
    while len(context.ended) >= _MOST_ENDED:
        del context.ended[next(iter(context.ended))]
    context.ended[record.id] = record
    with anyio.CancelScope(shield=True):
        await best_effort(destroy(context, record, only_if=lambda row: row == record))


def _note_failure(context: Context, record: Record, reason: str) -> None:
    """Note that a stopped instance couldn't be started again.

    Unless a job has it: that it took longer than a watcher waits is no failure, and its outcome is its own.
    """

    def noted(row: Record) -> Record:
        is_idle = row.state is State.STOPPED and row.pending is None
        return row.moved(Move.FAIL, reason=reason) if is_idle else row

    try:
        context.store.change(record.id, noted)
    except RametError:
        pass  # the next call for it finds out again
