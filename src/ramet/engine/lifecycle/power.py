"""Pause and resume."""

from __future__ import annotations

from ramet.engine.agent.session import connections_may_be_cut, correct_clock
from ramet.engine.context import Context
from ramet.engine.lifecycle.jobs import job
from ramet.engine.vmm import disk_errors
from ramet.model.lifecycle import Move
from ramet.model.record import Record


async def pause(context: Context, record: Record) -> Record:
    """Stop an instance's virtual CPUs; its memory stays. Raises `WrongStateError` unless it runs."""
    async with job(context, record, "pause") as record:
        record.moved(Move.PAUSE)
        await context.vmm(record).pause()
        return context.store.change(record.id, lambda row: row.moved(Move.PAUSE, vmm=row.vmm))


async def resume(context: Context, record: Record) -> Record:
    """Resume a paused instance, and correct its clock: after a failure of that the record has the reason.

    Raises `WrongStateError` unless it is paused, and when it is paused again at once over a disk that the
    host still can't write.
    """
    async with job(context, record, "resume") as record:
        record.moved(Move.RESUME)
        if disk_errors.is_stopped(context, record):
            await disk_errors.resume(context, record)
        else:
            await context.vmm(record).resume()
        connections_may_be_cut(context, record)
        late = await correct_clock(context, record)
        return context.store.change(record.id, lambda row: row.moved(Move.RESUME, vmm=row.vmm, reason=late))
