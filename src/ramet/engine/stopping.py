"""Stop: the guest powers off, so that its data is on its disks; the record tells if its VMM was killed."""

from __future__ import annotations

from contextlib import AsyncExitStack, suppress

import anyio
import msgspec

from ramet.drivers.interface import Ending
from ramet.engine import limits
from ramet.engine.agent.session import agent_of
from ramet.engine.context import Context
from ramet.engine.lifecycle.jobs import job
from ramet.engine.lifecycle.removal import destroy, drop_capture
from ramet.engine.maintenance.decompression import giving_up
from ramet.engine.restore.in_place import restore
from ramet.engine.vmm import disk_errors
from ramet.engine.vmm.console import last_words
from ramet.engine.vmm.main_end import main_end
from ramet.errors import GuestError, RametError, VmmError, WrongStateError
from ramet.model.lifecycle import Move, State
from ramet.model.record import Record
from ramet.system import processes, threads

_KILLED = "killed: "
_KILLED_CODE = 137
"""128 and SIGKILL's number: a main process that ended with its machine."""
_SHUTDOWN_S = 5.0
"""The part of a limit that a guest has to power off once its main process has ended."""
_A_LOOK_S = 0.05
_LEASE_SHARE = 0.8
"""Share of the limit for the guest's first answer, so that its own error comes in time."""


async def stop(context: Context, record: Record, *, limit_s: float = limits.STOP_S) -> Record:
    """Power the guest off, or end its VMM when that takes longer than `limit_s`. Disks are kept.

    Memory is lost. The record's reason says so when its VMM was killed: data that its guest hadn't synced is
    lost then.

    A guest that is paused, or in standby with disks, is resumed or restored to be powered off; with a limit
    of 0 nothing is asked or restored. An instance made with `--rm` is removed then. Raises `WrongStateError`
    for a template, for a stopped instance, and for a guest that is paused because the host can't write its
    disk: it stays paused then, and has lost nothing. Raises what a restore may raise: the instance is in
    standby then, as before. A process that compresses or decompresses the memory of an instance in standby is
    made to stop, and so are the forks that wait for that.
    """
    now = context.store.get(record.id)
    if now.state is State.STANDBY and now.machine.disks and limit_s > 0 and now.pending is None:
        await _bring_back(context, now)
    thought_alive = now.state is not State.STOPPED
    async with job(context, record, "stop") as current, AsyncExitStack() as leaving:
        if current.state is State.STOPPED and thought_alive:
            stopped = current  # it had powered off, and that wasn't recorded yet
        else:
            current.moved(Move.STOP)
            if current.state is State.STANDBY:
                directory = context.directory(current)
                await leaving.enter_async_context(giving_up(context.home, directory, name=current.name))
            reason = await _end(context, current, limit_s)
            code = _exit_code(context, current, reason)
            stopped = context.store.change(record.id, lambda row: _stopped(row, reason, code))
            if current.state is State.STANDBY:
                await threads.run(drop_capture, context.directory(current))
    if stopped.auto_remove:
        await destroy(context, stopped)
    return stopped


def _stopped(record: Record, reason: str | None, exit_code: int | None) -> Record:
    if record.state is State.STOPPED:  # a watcher has recorded its end already
        return msgspec.structs.replace(record, reason=reason or record.reason)
    return msgspec.structs.replace(record.moved(Move.STOP, reason=reason), exit_code=exit_code)


def _exit_code(context: Context, record: Record, reason: str | None) -> int | None:
    """Return the exit code of the main process of an instance that was just stopped."""
    if record.main is None or record.main.is_idle:
        return None
    if (end := main_end(context, record)) is not None:
        return end.exit_code
    return _KILLED_CODE if reason is not None and reason.startswith(_KILLED) else record.exit_code


async def _bring_back(context: Context, record: Record) -> None:
    """Restore a guest in standby: data that it hasn't written to its disks yet is only in its memory."""
    try:
        await restore(context, record)
    except RametError as error:
        # What would make the restore work comes first: the other way loses something.
        cure = f"{error.hint}; " if error.hint else ""
        raise type(error)(
            f"{record.name} can't be restored to be powered off: {error.message}",
            hint=f"{cure}it is in standby, as before, and `ramet stop --timeout 0 {record.name}` gives its"
            " memory up, with all that it hadn't written to its disks yet",
        ) from error


async def _end(context: Context, record: Record, limit_s: float) -> str | None:
    """End the VMM, if there is one. None when its guest powered off; else what happened instead."""
    lost = "; what its guest hadn't written to its disks is lost" if record.machine.disks else ""
    if record.vmm is None:
        dropped = record.state is State.STANDBY and bool(lost)
        return f"its memory was given up without powering it off{lost}" if dropped else None
    why: str | None = "it was to be stopped at once"
    if limit_s > 0:
        why = await _power_off(context, record, limit_s)
    if await processes.wait_ended(record.vmm.process, timeout_s=_A_LOOK_S):
        return _unless_in_order(context, record, lost)
    if limit_s > 0 and disk_errors.is_stopped(context, record):
        raise WrongStateError(
            f"{record.name} can't be powered off: {disk_errors.reason(context, record)}",
            hint=f"free some space, then stop it again; `ramet stop --timeout 0 {record.name}` gives up what"
            " it hasn't written",
        )
    await processes.kill(record.vmm.process)
    return f"{_KILLED}{why}{lost}"


async def _power_off(context: Context, record: Record, limit_s: float) -> str:
    """Ask the guest to power off and wait until its VMM has ended. Why it hasn't, if it hasn't."""
    assert record.vmm is not None
    promised = False
    try:
        with anyio.move_on_after(limit_s):
            if record.state is State.PAUSED:
                if disk_errors.is_stopped(context, record):
                    await disk_errors.resume(context, record)
                else:
                    await context.vmm(record).resume()
            async with agent_of(
                context, record, record.vmm.process, timeout_s=limit_s * _LEASE_SHARE, own=True
            ) as agent:
                if record.state is State.PAUSED:
                    with suppress(GuestError):  # an old time on its last files is all that it costs
                        await agent.set_clock(timeout_s=limits.CLOCK_S)
                await agent.shutdown(grace_ms=_grace_ms(record, limit_s), timeout_s=limit_s)
                promised = True
            await processes.wait_ended(record.vmm.process)
    except VmmError as error:
        if not await processes.wait_ended(record.vmm.process, timeout_s=processes.LAST_BREATH_S):
            return f"its VMM refuses commands ({error.message})"
    except GuestError as error:
        if not promised:
            return f"its guest couldn't be asked to power off ({error.message})"
    if promised:
        return f"it didn't power off within {limit_s:g} s"
    return f"its guest didn't answer within {limit_s:g} s"


def _grace_ms(record: Record, limit_s: float) -> int | None:
    """Return the time that the main process has between its stop signal and SIGKILL; the rest has its own."""
    return None if record.main is None else max(1, round((limit_s - min(_SHUTDOWN_S, limit_s / 2)) * 1000))


def _unless_in_order(context: Context, record: Record, lost: str) -> str | None:
    """Return the reason of a VMM that ended by itself: None, unless it died or its guest crashed."""
    assert record.vmm is not None
    driver, directory = context.driver(record.driver), context.directory(record)
    ending = driver.ending(directory, console_start=record.vmm.console_start)
    if ending in {Ending.DIED, Ending.CRASHED}:
        return f"it didn't power off: {ending.value}{last_words(context, record)}{lost}"
    return None
