"""A command whose time is over on the host, and whose guest hasn't said that the command ended.

The guest keeps a command's time, by its own clock: while it is paused, or in a laptop that sleeps, no time
passes for its commands. And the caller that waits for the command may have been stopped itself (Ctrl-Z). So
when the host's clock says that the time is over, the guest is asked first. The command is given up only if
the guest doesn't answer, or answers and doesn't end the command.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio

from ramet.engine import limits
from ramet.engine.context import Context
from ramet.errors import ExecUnansweredError, GuestError, GuestTimeoutError, RametError
from ramet.guest.client import AgentClient
from ramet.guest.command_stream import CommandStream
from ramet.model.lifecycle import State
from ramet.model.record import Record

_ASKED_IN_VAIN = 2
"""A guest that was paused when it was asked, and has just been resumed, is asked again."""
_PERIODS = 3
"""For one whose own clock doesn't say that the time is over: a clock may be slow, or a lie."""


async def overdue(
    context: Context, record: Record, agent: AgentClient, command: CommandStream, limit_s: float
) -> ExecUnansweredError:
    """Wait until a command is to be given up, and return the error with the known facts.

    Never returns for a command that ends or whose connection does: its user learns of that elsewhere.
    """
    await anyio.sleep(limit_s)
    in_vain, began_ns, ran_s = 0, None, 0.0
    while True:
        asked_s = time.monotonic()
        was_held = _is_held(context, record)
        try:
            # Everything that the guest sent before its answer has been read with it: the command's end, too.
            pong = await agent.ping(timeout_s=limits.ASK_S)
        except GuestTimeoutError:
            in_vain = 0 if was_held or _is_held(context, record) else in_vain + 1
            if in_vain == _ASKED_IN_VAIN:
                return ExecUnansweredError(
                    f"{record.name}: its guest doesn't answer: {command.program}, whose time is over, may "
                    "still be running",
                    hint=f"`ramet logs {record.name}` shows its console; `ramet stop {record.name}` ends it",
                )
            continue
        except GuestError:
            await anyio.sleep_forever()  # the connection has ended, as the command's user is told
        in_vain = 0
        began_ns = pong.monotonic_ns if began_ns is None else began_ns
        passed_s = (pong.monotonic_ns - began_ns) / 1e9
        if not command.awaits_its_user and (passed_s >= limit_s or ran_s >= _PERIODS * limit_s):
            return ExecUnansweredError(
                f"{record.name}: its guest answers, and neither ends {command.program}, whose time is over, "
                "nor says what became of it: it may still be running",
                hint=f"`ramet stop {record.name}` ends the guest",
            )
        await anyio.sleep(max(1.0, min(limit_s, limit_s - passed_s)))
        if not was_held:
            ran_s += time.monotonic() - asked_s


def _is_held(context: Context, record: Record) -> bool:
    """Tell whether ramet has paused the instance, or is about to change it."""
    try:
        now = context.store.get(record.id)
    except RametError:
        return False  # removed: its VMM ends, and the connection with it
    return now.state is State.PAUSED or now.pending is not None


@asynccontextmanager
async def unless(watchdog: Callable[[], Awaitable[Exception]]) -> AsyncIterator[None]:
    """Run the block until `watchdog` returns an error: the block is cancelled then, and that is raised.

    The block's own error comes out as itself, and not in an exception group.
    """
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:

        async def watch() -> None:
            nonlocal failure
            failure = await watchdog()
            tasks.cancel_scope.cancel()

        tasks.start_soon(watch)
        try:
            yield
        except Exception as error:
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
