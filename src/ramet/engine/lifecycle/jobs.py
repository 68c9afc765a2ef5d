"""Changes to an instance that take more than one step: begun, finished, and undone when ramet was killed in
between.

Under the instance's lock the record says what is being done and by which process. If that process dies, the
next one to open the home finds its mark and finishes or undoes the change.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import msgspec

from ramet.drivers.interface import Vmm
from ramet.engine.context import Context
from ramet.engine.lifecycle.state import observe, require_seen
from ramet.errors import NotFoundError, VmmError, WrongStateError
from ramet.model.lifecycle import Move
from ramet.model.record import Change, Pending, Record
from ramet.system import liveness, owners


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
        if record.vmm is None or liveness.is_dead(record.vmm.process):
            raise
        with suppress(NotFoundError, WrongStateError):  # removed, or changed by force meanwhile
            context.store.change(record.id, lambda one: one.moved(Move.PAUSE, vmm=one.vmm))
        raise type(error)(
            f"{record.name} stands still, and its VMM doesn't let it go on: {error.message}",
            hint=f"`ramet resume {record.name}` tries again",
        ) from error
