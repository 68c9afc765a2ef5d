"""Commands in a guest, and what the guest says of itself."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager

import anyio

from ramet.drivers.api import Ending
from ramet.engine.boot import restart
from ramet.engine.context import Context
from ramet.engine.observe import observe, require_seen
from ramet.engine.proof import agent_of
from ramet.engine.results import ExecResult
from ramet.errors import ExecTimeoutError, RametError, WrongStateError
from ramet.guest.client import AgentClient, Process, run_exec
from ramet.guest.messages import ExecRequest
from ramet.host import processes as host_processes
from ramet.model.lifecycle import State, article, next_step
from ramet.model.record import Record
from ramet.model.shapes import GuestProcess

ANSWER_LIMIT_S = 30.0
INSPECT_LIMIT_S = 3.0
BACKSTOP_S = 10.0


def request(
    argv: tuple[str, ...],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    user: str | None = None,
    timeout_s: float | None = None,
    stdin_open: bool = False,
    console: bool = False,
) -> ExecRequest:
    """The agent's request for a command."""
    return ExecRequest(
        argv=argv,
        env=dict(env or {}),
        cwd=cwd,
        user=user,
        timeout_s=timeout_s,
        stdin_open=stdin_open,
        console=console,
    )


async def settle(context: Context, record: Record) -> Record:
    """The record as it is in fact, written down.

    A restored guest that rebooted is started cold, as its user asked of it.
    """
    record = context.store.get(record.id)
    while record.pending is not None:
        if not host_processes.is_dead(record.pending.by):
            if record.pending.what != "start":
                return observe(context, record).record  # its state is another's to write
            async with context.lifecycle(record):  # it is about to run
                return observe(context, context.store.get(record.id)).record
        # Who was at it may have finished, and ended, since the record was read.
        before, record = record, context.store.get(record.id)
        if record == before:
            break
    observed, ending = observe(context, record)
    if ending is Ending.REBOOTED:
        return await restart(context, record)
    if ending is not None:
        return context.store.change(record.id, lambda one: observed if one == record else one)
    return observed


@asynccontextmanager
async def agent(context: Context, record: Record) -> AsyncIterator[AgentClient]:
    """The agent of a running instance. Raises `WrongStateError` in any other state, with what to do."""
    record = await settle(context, record)
    if record.vmm is not None and not host_processes.is_this_boot(record.vmm.process):
        require_seen(record)  # a container's guest is reached over its sockets, another machine's isn't
    if record.state is not State.RUNNING or record.vmm is None:
        reason = f" ({record.reason})" if record.reason else ""
        raise WrongStateError(
            f"{record.name} is {article(record.state)}{reason}", hint=next_step(record.state, record.name)
        )
    async with agent_of(context, record, record.vmm.process, timeout_s=ANSWER_LIMIT_S) as client:
        yield client


async def execute(
    context: Context, record: Record, command: ExecRequest, *, stdin: bytes | None, max_output_bytes: int
) -> ExecResult:
    """Run a command to its end and collect what it wrote. Raises `ExecTimeoutError` when its time ran out."""
    with _backstop(command):
        async with agent(context, record) as client:
            outcome = await run_exec(client, command, stdin, max_output_bytes)
    if outcome.timed_out:
        raise _too_late(command)
    return ExecResult(
        argv=tuple(command.argv),
        exit_code=outcome.exit_code,
        signal=outcome.signal,
        stdout=outcome.stdout,
        stderr=outcome.stderr,
    )


@asynccontextmanager
async def process(context: Context, record: Record, command: ExecRequest) -> AsyncIterator[Process]:
    """A command whose streams the caller works with. Leaving the block early kills it."""
    with context.calls.call(), _backstop(command):
        async with agent(context, record) as client, client.start(command, calls=context.calls) as running:
            with context.calls.ends_with_the_host(running.end):
                yield running


@contextmanager
def _backstop(command: ExecRequest) -> Iterator[None]:
    """The guest keeps a command's time; a guest that hangs, or lies, doesn't.

    Then the host does, a little later.
    """
    if command.timeout_s is None:
        yield
        return
    with anyio.move_on_after(command.timeout_s + BACKSTOP_S) as scope:
        yield
    if scope.cancelled_caught:
        raise _too_late(command)


def _too_late(command: ExecRequest) -> ExecTimeoutError:
    return ExecTimeoutError(f"{command.argv[0]} didn't end within {command.timeout_s:g} s and was killed")


async def spawn(context: Context, record: Record, command: ExecRequest) -> int:
    """Start a command that nobody waits for; its pid in the guest."""
    async with agent(context, record) as client:
        return await client.spawn(command)


async def processes_of(context: Context, record: Record) -> list[GuestProcess] | None:
    """The commands that run in a guest, or None when it doesn't say so within `INSPECT_LIMIT_S`."""
    assert record.vmm is not None
    try:
        async with agent_of(context, record, record.vmm.process, timeout_s=INSPECT_LIMIT_S) as client:
            found = await client.processes()
    except RametError:
        return None
    return [
        GuestProcess(pid=one.pid, argv=list(one.argv), inherited=one.orphaned, detached=one.detached)
        for one in found
    ]
