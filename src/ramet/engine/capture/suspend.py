"""Suspend: a living instance becomes a template, or goes into standby; its VMM ends.

Its directory becomes a capture. Every part is published under a new name, then the manifest, then the row
gets the new state; only then the VMM ends. Until the row has the new state the instance is what it was.
"""

from __future__ import annotations

from typing import Final, Literal

import anyio

from ramet.engine.agent.session import require_clock
from ramet.engine.capture.capture import capture
from ramet.engine.capture.publish import drop_former_base, drop_unpublished
from ramet.engine.context import Context
from ramet.engine.lifecycle.jobs import job, resume_guest
from ramet.engine.maintenance.requests import request_for_capture
from ramet.errors import NotFoundError, VmmError
from ramet.model.lifecycle import Move, State
from ramet.model.record import Record, RunningVmm
from ramet.system import liveness, processes

_RESULT: Final = {Move.TEMPLATE: State.TEMPLATE, Move.STANDBY: State.STANDBY}


async def promote(context: Context, record: Record) -> Record:
    """Make a template of an instance that is running, paused or in standby. Its VMM has ended afterwards.

    Raises `WrongStateError`; `UnavailableError` when its memory may not be read; `FilesystemError` when it
    doesn't fit; `VmmError`. Then the instance has its state from before, so it runs if it ran, or is paused
    if its VMM can't be told to resume it. Only when ending its VMM is what fails is it a template already,
    and the next ramet process ends the VMM.
    """
    return await _suspend(context, record, Move.TEMPLATE)


async def standby(context: Context, record: Record) -> Record:
    """Put a running or paused instance into standby: its VMM is gone afterwards, `restore` brings it back.

    Errors as `promote`.
    """
    return await _suspend(context, record, Move.STANDBY)


async def _suspend(context: Context, record: Record, move: Literal[Move.TEMPLATE, Move.STANDBY]) -> Record:
    what: Literal["template", "standby"] = "template" if move is Move.TEMPLATE else "standby"
    async with job(context, record, what) as record:
        record.moved(move)
        if record.state is State.STANDBY:
            suspended = _commit(context, record, move)
            request_for_capture(context.home, context.directory(record))
            return suspended
        if record.vmm is None:
            raise VmmError(f"{record.name} has no VMM")
        running = record.vmm
        directory = context.directory(record)
        try:
            # What `run` made lies over a guest that has only booted, and forks would hold the rest each for
            # themselves. The base of a fork is worth sharing further.
            is_over_a_boot = record.boot is not None and record.boot.how == "snapshot"
            whole = move is Move.TEMPLATE and is_over_a_boot
            await capture(context, record, directory, goes_on=False, labels=record.labels, whole=whole)
            suspended = _commit(context, record, move)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await _undo(context, record, running, _RESULT[move])
            raise
        with anyio.CancelScope(shield=True):
            await processes.kill(running.process)
            drop_former_base(directory)
            request_for_capture(context.home, directory)
        return suspended


def _commit(context: Context, record: Record, move: Move) -> Record:
    """Write the new state into the row; a template is no longer the fork that had a receipt."""
    if move is Move.TEMPLATE:
        return context.store.change(record.id, lambda row: row.moved(move), durable=True, receipt=None)
    return context.store.change(record.id, lambda row: row.moved(move), durable=True)


async def _undo(context: Context, record: Record, running: RunningVmm, suspended: State) -> None:
    """Resume the source first; then free the space.

    A failure of either step doesn't keep the other from being tried. Nothing happens when the row has the new
    state already: the interruption came too late.
    """
    try:
        if context.store.get(record.id).state is suspended:
            return
    except NotFoundError:
        return
    try:
        if record.state is State.RUNNING and not liveness.is_dead(running.process):
            await resume_guest(context, record, context.vmm(record))
            await require_clock(context, record)
    finally:
        drop_unpublished(context.directory(record), running)
