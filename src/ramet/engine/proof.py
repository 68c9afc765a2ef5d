"""The proof of life: a guest that has just been booted or resumed is made its own, and says so (I5)."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path

import anyio
import anyio.abc

from ramet.engine.context import Context
from ramet.errors import GuestError, GuestLostError, GuestTimeoutError, RametError, UnseenError, VmmError
from ramet.guest.client import AgentClient
from ramet.guest.greeting import ask
from ramet.guest.messages import IdentityReply, IdentityRequest, Message
from ramet.guest.ports import claim_port
from ramet.guest.vsock import connect_vsock
from ramet.host import processes, rings
from ramet.model.record import ProcessRef, Record
from ramet.paths import CONSOLE_LOG

_SEED_BYTES = 64
_CLOCK_ERROR_GOOD_MS = 100.0
_CLOCK_ERROR_LIMIT_MS = 1000.0
_CLOCK_TRIES = 5
_CLOCK_LIMIT_S = 5.0
_HANDSHAKES = 5
_NO_BREATH_S = 0.1
_PORT_WAIT_S = 60.0
_VSOCK_WAIT_S = 120.0
_RECONNECT_S = 15.0


def hostname_of(name: str) -> str:
    """The hostname of an instance: its name, with what hostname(7) doesn't allow made `-`."""
    return re.sub(r"[^A-Za-z0-9.-]", "-", name).strip("-.") or "ramet"


async def prove(
    context: Context,
    record: Record,
    process: ProcessRef,
    *,
    limit_s: float,
    directory: Path | None = None,
    stream: anyio.abc.ByteStream | None = None,
) -> IdentityReply:
    """Give the guest of `record` its identity and return what it answered after its own resume.

    Its VMM works in `directory`, which is the instance's own unless given. `stream` is a connection to its
    agent, if there is one already; it stays open.

    Raises `VmmError`, with the end of the guest's console, when its VMM dies first; `GuestTimeoutError` when
    `limit_s` passes; `GuestError` when the answer isn't what was set. The guest is in no known state then:
    kill it.
    """
    request = IdentityRequest(
        generation=record.generation,
        seed=os.urandom(_SEED_BYTES),
        hostname=hostname_of(record.name),
        machine_id=record.machine_id,
    )
    place = directory or context.directory(record)
    try:
        with anyio.fail_after(limit_s):
            reply = await _introduce(place, record.machine.agent_ports, request, stream)
    except (TimeoutError, GuestTimeoutError) as error:
        raise GuestTimeoutError(
            f"{record.name}: its guest wasn't ready within {limit_s:g} s{console_end(context, record)}",
            hint="if this machine is busy, try again with less at once; `ramet doctor` says what it can do",
        ) from error
    except GuestError as error:
        # A VMM that dies closes its sockets a moment before its process has ended. A guest that only answers
        # wrongly is given up at once.
        breath_s = processes.LAST_BREATH_S if isinstance(error, GuestLostError) else _NO_BREATH_S
        if await processes.wait_ended(process, timeout_s=breath_s):
            raise VmmError(f"{record.name}: the VMM ended{console_end(context, record)}") from error
        raise
    wrong = [
        what
        for what, is_right in {
            "generation": reply.generation == request.generation,
            "hostname": reply.hostname == request.hostname,
            "machine-id": reply.machine_id == request.machine_id,
            "random bytes": len(set(reply.boot_random)) > 1,
            "clock": abs(reply.clock_error_ms) <= _CLOCK_ERROR_LIMIT_MS,
        }.items()
        if not is_right
    ]
    if wrong:
        raise GuestError(f"{record.name}: the guest didn't take its identity: {', '.join(wrong)} wrong")
    return reply


async def _introduce(
    directory: Path, agent_ports: int, request: IdentityRequest, opened: anyio.abc.ByteStream | None
) -> IdentityReply:
    """Ask until the guest answers, over what is `opened`, if anything is: a port that closes means that the
    VMM has ended. A connection that ends before the answer is made again, a few times: a restored guest
    resets those over vsock when it learns of that, the first new one perhaps among them. If no other can be
    made then, the VMM has ended, and the loss is the error.
    """
    lost: GuestLostError | None = None
    tries_left = _CLOCK_TRIES
    losses_left = _HANDSHAKES
    while True:
        try:
            async with nullcontext(opened) if opened else _open_stream(directory, agent_ports) as stream:
                answer = await ask(
                    stream,
                    Message.IDENTITY,
                    request.encode,
                    Message.IDENTITY_DONE,
                    what="a new identity",
                )
        except GuestLostError as error:
            lost = error
            losses_left -= 1
            if losses_left == 0 or opened is not None:
                raise
            continue
        except GuestError as error:
            if lost is None:
                raise
            raise lost from error
        reply = IdentityReply.decode(answer.payload, (answer.sent_ns + answer.arrived_ns) // 2)
        tries_left -= 1
        # On a busy host the time that was sent is old when it arrives. The guest is awake by now: once more
        # is quicker.
        if abs(reply.clock_error_ms) <= _CLOCK_ERROR_GOOD_MS or tries_left == 0:
            return reply


def _lease_of(record: Record, process: ProcessRef) -> str:
    """By process, too: an instance that is rewound has two VMMs for a moment."""
    return f"{record.id}:{process.pid}:{process.started}"


def connections_may_be_cut(context: Context, record: Record) -> None:
    """Its VMM has just saved the guest's state, and may have reset its connections: whoever has one looks."""
    assert record.vmm is not None
    context.agents.nudge(_lease_of(record, record.vmm.process))


async def correct_clock(context: Context, record: Record) -> None:
    """Put the wall clock of a guest right that stood still for a while. One that doesn't answer keeps its
    own.

    Its monotonic clock stays: it never goes backwards, and the guest wasn't there meanwhile.
    """
    assert record.vmm is not None
    try:
        async with agent_of(context, record, record.vmm.process, timeout_s=_CLOCK_LIMIT_S) as agent:
            await agent.set_clock(timeout_s=_CLOCK_LIMIT_S)
    except RametError:
        pass


@asynccontextmanager
async def agent_of(
    context: Context,
    record: Record,
    process: ProcessRef,
    *,
    timeout_s: float,
    directory: Path | None = None,
) -> AsyncIterator[AgentClient]:
    """The agent of a living instance, whose VMM works in `directory` if not in the instance's own.

    A VMM that ends while the agent is used is a `VmmError` at once, not a time-out later.
    """
    place = directory or context.directory(record)
    open_stream = partial(_open_stream, place, record.machine.agent_ports)
    which = _lease_of(record, process)
    reopen = None if record.machine.agent_ports > 0 else partial(_reconnect, place, process)
    died = False
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:

        async def watch() -> None:
            nonlocal died
            try:
                await processes.wait_ended(process)
            except UnseenError:
                return  # of a container: it is talked to all the same, and its end is a lost connection
            died = True
            tasks.cancel_scope.cancel()

        tasks.start_soon(watch)
        try:
            async with context.agents.lease(
                which, open_stream=open_stream, timeout_s=timeout_s, reopen=reopen
            ) as agent:
                yield agent
        except Exception as error:
            # Kept, whatever it is, and raised outside, where no task group wraps it.
            failure = error
        tasks.cancel_scope.cancel()
    if isinstance(failure, GuestLostError):
        # A VMM that dies closes its sockets a moment before its process has ended.
        with suppress(UnseenError):  # the connection's end is what is known then
            died = died or await processes.wait_ended(process, timeout_s=processes.LAST_BREATH_S)
    if died:
        raise VmmError(f"{record.name}: the VMM ended{console_end(context, record)}") from failure
    if failure is not None:
        raise failure


def _open_stream(directory: Path, ports: int) -> AbstractAsyncContextManager[anyio.abc.ByteStream]:
    """A machine has virtio-serial ports for the agent, or a vsock device."""
    if ports > 0:
        return claim_port(directory, ports, wait_s=_PORT_WAIT_S)
    return connect_vsock(directory, wait_s=_VSOCK_WAIT_S)


@asynccontextmanager
async def _reconnect(directory: Path, process: ProcessRef) -> AsyncIterator[anyio.abc.ByteStream]:
    """A vsock connection through that VMM and no other. A directory may get another VMM, whose guest has an
    older state of the same memory: what is under way isn't resumed there.
    """
    # What SO_PEERCRED says of a process of another PID namespace: unix(7).
    pid = process.pid if processes.is_here(process) else 0
    async with connect_vsock(directory, wait_s=_RECONNECT_S, listener_pid=pid) as stream:
        yield stream


def console_end(context: Context, record: Record) -> str:
    """The last lines of the guest's console, for an error message."""
    text = rings.printable(rings.tail(context.directory(record) / CONSOLE_LOG, 4096))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "; its console ends with: " + " / ".join(lines[-3:])[-400:] if lines else ""
