"""Jobs: changes to an instance that take more than one step, finished or undone also when ramet is killed.

Under the instance's lock the record holds the intent: the job and the process that does it. If that process
dies, the next process that opens the home finds the intent and finishes or undoes the job.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import msgspec

from ramet.drivers.interface import Vmm
from ramet.engine.context import Context
from ramet.engine.lifecycle.state import require_seen, state_of
from ramet.errors import NotFoundError, VmmError, WrongStateError
from ramet.model.lifecycle import Move
from ramet.model.record import Intent, Job, Record
from ramet.system import liveness, owners


@asynccontextmanager
async def job(context: Context, record: Record, what: Job) -> AsyncIterator[Record]:
    """Hold the instance's lock for a job. Yields the record in its actual state, with this process's intent.

    Raises `NotFoundError` when the instance has been removed, `WrongStateError` when another job doesn't end,
    `UnseenError` when the VMM or the process that changes the instance can't be seen from here. The intent is
    cleared in any case; the caller changes the state.
    """
    async with context.lifecycle(record) as lock:
        fact = state_of(context, context.store.get(record.id)).record
        require_seen(fact)
        pending = Intent(what=what, by=owners.owner(context.home.root))
        intended = context.store.change(
            record.id,
            lambda row: msgspec.structs.replace(
                row, state=fact.state, vmm=fact.vmm, reason=fact.reason, pending=pending
            ),
        )
        context.locks[record.id] = lock
        try:
            yield intended
        finally:
            del context.locks[record.id]
            _clear_intent(context, record)


def _clear_intent(context: Context, record: Record) -> None:
    try:
        context.store.change(record.id, lambda row: msgspec.structs.replace(row, pending=None))
    except NotFoundError:
        pass  # removed meanwhile


async def resume_guest(context: Context, record: Record, vmm: Vmm) -> None:
    """Resume a guest that was paused for a job.

    Raises `VmmError` when the VMM refuses. If the VMM lives, the record says that the guest is paused, so
    that anybody can resume it once the VMM is in a better state.
    """
    try:
        await vmm.resume()
    except VmmError as error:
        if record.vmm is None or liveness.is_dead(record.vmm.process):
            raise
        with suppress(NotFoundError, WrongStateError):  # removed, or changed by force meanwhile
            context.store.change(record.id, lambda row: row.moved(Move.PAUSE, vmm=row.vmm))
        raise type(error)(
            f"{record.name} is paused, and its VMM doesn't resume it: {error.message}",
            hint=f"`ramet resume {record.name}` tries again",
        ) from error
