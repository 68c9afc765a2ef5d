"""Commands in a guest."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial

import msgspec

from ramet.engine import limits
from ramet.engine.agent.main_process import main_request, with_defaults
from ramet.engine.agent.root import ask_for_root
from ramet.engine.agent.session import agent_of
from ramet.engine.context import Context
from ramet.engine.exec.overdue import overdue, unless
from ramet.engine.lifecycle.state import require_seen
from ramet.engine.lifecycle.watch import refresh
from ramet.errors import RametError, WrongStateError
from ramet.guest.client import AgentClient, run_to_end
from ramet.guest.messages import ExecRequest
from ramet.guest.process import Process
from ramet.model.command import Source, Word
from ramet.model.exec_result import Collector, ExecResult
from ramet.model.lifecycle import State, article, next_step
from ramet.model.record import Record
from ramet.model.rootfs import why_full
from ramet.model.schema import GuestRoot
from ramet.system import process_ref

ANSWER_LIMIT_S = limits.ANSWER_S
BACKSTOP_S = limits.BACKSTOP_S


def request(
    argv: tuple[Word, ...],
    *,
    env: Mapping[str, Word] | None = None,
    cwd: Word | None = None,
    user: str | int | None = None,
    timeout_s: float | None = None,
    stdin_open: bool = False,
    console: bool = False,
) -> ExecRequest:
    """Make the agent's request for a command. Words of any type have become texts: see `api.arguments`."""
    return ExecRequest(
        argv=tuple(map(str, argv)),
        env={name: str(value) for name, value in (env or {}).items()},
        cwd=None if cwd is None else str(cwd),
        user=None if user is None else str(user),
        timeout_s=timeout_s,
        stdin_open=stdin_open,
        console=console,
    )


@asynccontextmanager
async def agent(
    context: Context, record: Record, *, command_s: float | None = None
) -> AsyncIterator[AgentClient]:
    """Lease the agent of a running instance, for a command that may take `command_s`.

    Raises `WrongStateError` in any other state, with the next step.
    """
    record = await refresh(context, record)
    if record.vmm is not None and not process_ref.is_this_boot(record.vmm.process):
        require_seen(record)  # a container's guest is reached over its sockets, another machine's isn't
    if record.state is not State.RUNNING or record.vmm is None:
        reason = f" ({record.reason})" if record.reason else ""
        raise WrongStateError(
            f"{record.name} is {article(record.state)}{reason}", hint=next_step(record.state, record.name)
        )
    limit_s = ANSWER_LIMIT_S
    if command_s is not None:  # who has little time for the command doesn't wait long for its guest
        limit_s = min(limit_s, max(limits.PORT_S, command_s + BACKSTOP_S))
    async with agent_of(context, record, record.vmm.process, timeout_s=limit_s) as client:
        yield client


async def execute(
    context: Context, record: Record, command: ExecRequest, *, stdin: Source | None, max_output_bytes: int
) -> ExecResult:
    """Run a command to its end and collect its output. Raises `ExecTimeoutError` when its time ran out."""
    collector = Collector(command.argv, timeout_s=command.timeout_s, max_output_bytes=max_output_bytes)
    async with process(context, record, command) as running:
        end = await run_to_end(running, stdin, collector)
    return await noted(context, record, collector.result(end))


async def root_of(context: Context, record: Record) -> GuestRoot | None:
    """Return the root of a running container image's guest as the guest sees it; None for other images.

    Raises as `agent`.
    """
    if record.main is None:
        return None
    async with agent(context, record, command_s=0.0) as client:
        return await ask_for_root(client)


async def noted(context: Context, record: Record, result: ExecResult) -> ExecResult:
    """Return the result of a command with a note, if it failed and its guest's root is full."""
    if result.ok:
        return result
    try:
        root = await root_of(context, record)
    except RametError:
        return result  # the guest has ended, for example: the result stands
    return result if root is None else msgspec.structs.replace(result, note=why_full(record.name, root))


@asynccontextmanager
async def process(context: Context, record: Record, command: ExecRequest) -> AsyncIterator[Process]:
    """Start a command whose streams the caller works with. Leaving the block early kills the command.

    The guest keeps the command's time. Raises `ExecUnansweredError` when the guest doesn't, and gives no
    reason.
    """
    with context.calls.call():
        async with (
            agent(context, record, command_s=command.timeout_s) as client,
            client.start_stream(with_defaults(record, command)) as stream,
        ):
            running = Process(stream, context.calls)
            with context.calls.ends_with_the_host(stream.end):
                if command.timeout_s is None:
                    yield running
                    return
                limit_s = command.timeout_s + BACKSTOP_S
                async with unless(partial(overdue, context, record, client, stream, limit_s)):
                    yield running


async def spawn(context: Context, record: Record, command: ExecRequest) -> int:
    """Start a command that nobody waits for, and return its pid in the guest."""
    async with agent(context, record) as client:
        return await client.spawn(with_defaults(record, command))


@asynccontextmanager
async def main_process(
    context: Context, record: Record, *, stdin_open: bool = False
) -> AsyncIterator[Process]:
    """Start the main process of an idle instance, with streams that the caller works with.

    Leaving the block early kills it, and with it the instance ends. Raises `WrongStateError` when the
    instance has none, or has started it already.
    """
    main = record.main
    if main is None or not main.argv:
        raise WrongStateError(
            f"{record.name} has no main process: its image, {record.image}, names none",
            hint=f"run a command in it: `ramet exec {record.name} COMMAND…`",
        )
    if not main.is_idle:
        raise WrongStateError(
            f"the main process of {record.name} was started with it",
            hint=f"its output is in `ramet logs {record.name}`",
        )
    async with process(context, record, main_request(main, stdin_open=stdin_open)) as running:
        started = msgspec.structs.replace(main, is_idle=False)
        context.store.change(record.id, lambda row: msgspec.structs.replace(row, main=started))
        yield running
