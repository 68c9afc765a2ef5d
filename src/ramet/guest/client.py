"""The agent's client: everything that ramet asks of a guest, over one byte stream."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final

import anyio
import anyio.abc

from ramet.concurrency import alongside
from ramet.errors import ExecError, GuestError, GuestTimeoutError, ProtocolError, RametError
from ramet.guest.command_stream import CommandStream, start_error
from ramet.guest.connection import Connection, open_connection
from ramet.guest.feeding import pieces
from ramet.guest.fields import Fields, put_number, put_text
from ramet.guest.framing import Frame
from ramet.guest.machine import Growth, RootSpace, shutdown, trust, trusted
from ramet.guest.messages import (
    COMMANDS_MAX,
    ExecRequest,
    GuestProcess,
    IdentityReply,
    IdentityRequest,
    Message,
    Pong,
    Welcome,
    started_pid,
)
from ramet.guest.process import Process
from ramet.guest.resumption import OpenStream
from ramet.guest.waiting import last_look
from ramet.model.command import ExitStatus, Source
from ramet.model.exec_result import DEFAULT_MAX_OUTPUT_BYTES, Collector, ExecResult

__all__ = ["AgentClient", "run_exec", "run_to_end"]

DEFAULT_TIMEOUT_S: Final = 10.0


class AgentClient:
    """A session with a guest's agent. Any number of tasks may use it at once.

    A failed request leaves the session usable. When the connection ends, or the guest breaks the protocol,
    every waiting and every later call raises; in the guest the session's commands keep running as orphans.
    """

    def __init__(self, connection: Connection, welcome: Welcome) -> None:
        self.welcome = welcome
        self._connection = connection

    @classmethod
    @asynccontextmanager
    async def connect(
        cls,
        stream: anyio.abc.ByteStream,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        resend_s: float = 0.25,
        reopen: OpenStream | None = None,
    ) -> AsyncIterator[AgentClient]:
        """Begin a session on `stream`, even if old data is in it. The caller closes the stream.

        With `reopen` the session outlives the stream: when the stream ends after the handshake, `reopen`
        makes another stream to the same guest, and open requests continue there, as far as the agent can do
        that.

        Raises `GuestTimeoutError` when no agent answers within `timeout_s`, `GuestError` when the stream
        ends.
        """
        async with open_connection(
            stream, timeout_s=timeout_s, resend_s=resend_s, reopen=reopen
        ) as connection:
            assert connection.welcome is not None
            yield cls(connection, connection.welcome)

    def probe_liveness(self) -> None:
        """Find out soon whether the connection still works.

        Call it after saving the VM's state: that cuts connections in the guest, and their ends on the host
        don't notice.
        """
        self._connection.probe_liveness()

    async def ping(self, *, timeout_s: float = 5) -> Pong:
        """Return the guest's clocks, and prove that its agent runs *now*.

        The answer repeats a fresh number.
        """
        proof = os.urandom(16)
        answer = await self._connection.request(
            Message.PING, proof, Message.PONG, what="a ping", timeout_s=timeout_s
        )
        fields = Fields(answer.payload)
        if fields.one(1) != proof:
            raise ProtocolError("the guest answered a ping that wasn't sent")
        return Pong(fields.number(2, 8), fields.number(3, 8), answer.arrived_at_s - answer.sent_at_s)

    async def identity(
        self, request: IdentityRequest, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> IdentityReply:
        """Give the guest a new identity: entropy, clock, hostname, machine-id, generation.

        The clock is set to the host's at the moment of sending; `clock_error_ms` compares the guest's clock
        in the answer with the host's at the middle of the round trip. After an error a part of the identity
        may be set: such a fork must not be used.
        """
        sent_ns = 0

        def payload() -> bytes:
            nonlocal sent_ns
            sent_ns = time.time_ns()
            return request.encode(sent_ns)

        answer = await self._connection.request(
            Message.IDENTITY, payload, Message.IDENTITY_DONE, what="a new identity", timeout_s=timeout_s
        )
        return IdentityReply.decode(answer.payload, (sent_ns + answer.arrived_realtime_ns) // 2)

    async def set_clock(self, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> float:
        """Set only the guest's wall clock, to the host's. Returns the remaining error in milliseconds.

        The guest's monotonic clock stays. After an error the clock may be set or not.
        """
        sent_ns = 0

        def payload() -> bytes:
            nonlocal sent_ns
            sent_ns = time.time_ns()
            return put_number(1, 8, sent_ns)

        answer = await self._connection.request(
            Message.CLOCK, payload, Message.CLOCK_DONE, what="the time", timeout_s=timeout_s
        )
        middle_ns = (sent_ns + answer.arrived_realtime_ns) // 2
        return (Fields(answer.payload).number(1, 8) - middle_ns) / 1e6

    @asynccontextmanager
    async def start(
        self, request: ExecRequest, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> AsyncIterator[Process]:
        """Start a command; `timeout_s` is for the start alone.

        Leaving the block, for any reason, kills the command's process group if it still runs. Raises
        `ExecNotFoundError`, `ExecNotExecutableError` or `ExecError` when the command can't be started, and
        `UsageError` (nothing was sent) when it isn't a command or is larger than a frame.
        """
        async with self.start_stream(request, timeout_s=timeout_s) as stream:
            yield Process(stream)

    @asynccontextmanager
    async def start_stream(
        self, request: ExecRequest, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> AsyncIterator[CommandStream]:
        """Start a command as `start` does, for callers that end its stream themselves."""
        stream = CommandStream(self._connection, request)
        try:
            await stream.begin(timeout_s)
            yield stream
        finally:
            await stream.end()

    async def spawn(self, request: ExecRequest, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> int:
        """Start a command that nobody waits for, and return its process number. Raises as `start` does."""
        waiting = _Spawn(request)
        payload = request.encode(detached=True)
        number = self._connection.open(waiting)
        try:
            with anyio.move_on_after(timeout_s):
                await self._connection.send(Message.EXEC, number, payload)
                await waiting.done.wait()
            if not waiting.done.is_set():
                await last_look(waiting.done.wait)
        finally:
            self._connection.close(number)
        if waiting.error is not None:
            raise waiting.error
        if not waiting.done.is_set():
            raise GuestTimeoutError(
                f"the guest didn't say within {timeout_s:g} s whether {request.argv[0]!r} started: it may run"
            )
        return waiting.pid

    async def processes(self, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> list[GuestProcess]:
        """List the running commands that were started through the agent, by any client."""
        answer = await self._connection.request(
            Message.LIST, b"", Message.LIST_DONE, what="the list of processes", timeout_s=timeout_s
        )
        values = Fields(answer.payload).all(1)
        if len(values) > COMMANDS_MAX:
            raise ProtocolError(f"the guest lists {len(values)} processes of at most {COMMANDS_MAX}")
        return [GuestProcess.decode(value) for value in values]

    async def root_space(self, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> RootSpace | None:
        """Return the room of the guest's root; None for a guest whose root isn't a container image's."""
        answer = await self._connection.request(
            Message.LIST, b"", Message.LIST_DONE, what="the room of its root", timeout_s=timeout_s
        )
        values = Fields(answer.payload).all(2)
        return RootSpace.decode(values[0]) if values else None

    async def grow(self, disk: str, *, timeout_s: float) -> Growth:
        """Grow the filesystem that the agent mounted from `disk` to the size that the guest sees of the disk.

        The agent answers nothing else meanwhile. Raises `GuestError` when the filesystem isn't mounted, or
        can't grow: it has its size from before then, or a size between.
        """
        answer = await self._connection.request(
            Message.GROW,
            put_text(1, disk),
            Message.GROW_DONE,
            what="a larger filesystem",
            timeout_s=timeout_s,
        )
        return Growth.decode(answer.payload)

    async def trust(
        self, certificates: Iterable[str], *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> tuple[str, ...]:
        """Add certificates of authorities (PEM, one each) to those that the guest's programs trust.

        A certificate that is trusted already isn't added again. Returns the paths of the bundles that have
        the certificates now; the first is one to name in `SSL_CERT_FILE` and its like. Raises `UsageError`
        for what isn't a certificate, and when all of them together are larger than a frame; `GuestError` when
        the guest can't write them, which may have some then.
        """
        answer = await self._connection.request(
            Message.TRUST,
            trust(certificates),
            Message.TRUST_DONE,
            what="certificates to trust",
            timeout_s=timeout_s,
        )
        return trusted(answer.payload)

    async def shutdown(
        self, *, reboot: bool = False, grace_ms: int | None = None, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> None:
        """Ask the guest to power off, or to reboot.

        A main process gets its stop signal, and SIGKILL after `grace_ms` (None: 2 s). Returns after the
        guest's yes, when it is shutting down.
        """
        await self._connection.request(
            Message.SHUTDOWN,
            shutdown(reboot=reboot, grace_ms=grace_ms),
            Message.SHUTDOWN_DONE,
            what="a shutdown",
            timeout_s=timeout_s,
            repeatable=False,
        )


class _Spawn:
    """The receiver of a detached start."""

    def __init__(self, request: ExecRequest) -> None:
        self.pid = 0
        self.error: RametError | None = None
        self.done = anyio.Event()
        self._request = request

    def receive(self, frame: Frame) -> None:
        if frame.type == Message.STARTED:
            self.pid = started_pid(frame.payload)
        elif frame.type == Message.ERROR:
            self.error = start_error(self._request, frame.payload)
        else:
            raise ProtocolError(f"the guest answered a detached start with a frame of type {frame.type:#04x}")
        self.done.set()

    def lost(self, error: GuestError) -> None:
        if self.done.is_set():
            return
        self.error = type(error)(
            f"{error.message} while {self._request.argv[0]!r} was started", hint=error.hint
        )
        self.done.set()


async def run_exec(
    agent: AgentClient,
    request: ExecRequest,
    stdin: Source | None = None,
    max_output_bytes: int = DEFAULT_MAX_OUTPUT_BYTES,
    *,
    start_timeout_s: float = DEFAULT_TIMEOUT_S,
) -> ExecResult:
    """Run a command to its end. Raises as `AgentClient.start`, `run_to_end` and `Collector.result` do."""
    collector = Collector(request.argv, timeout_s=request.timeout_s, max_output_bytes=max_output_bytes)
    request = replace(request, stdin_open=stdin is not None)
    async with agent.start(request, timeout_s=start_timeout_s) as process:
        end = await run_to_end(process, stdin, collector)
    return collector.result(end)


async def run_to_end(process: Process, stdin: Source | None, collector: Collector) -> ExitStatus:
    """Feed a command `stdin` (None: the command has no stdin) and collect both streams, to its end.

    Raises what `collector` raises: the caller kills the command by leaving the command's block.
    """
    collecting, unread = anyio.CancelScope(), list[RametError]()

    async def feed() -> None:
        try:
            async for piece in pieces(stdin):
                await process.write(piece)
            await process.close_stdin()
        except (GuestError, ExecError):
            pass  # the command or the connection has failed, which the collecting side tells
        except RametError as error:  # the input can't be read: the command is ended
            unread.append(error)
            collecting.cancel()

    async def collect() -> None:
        async for chunk in process.output():
            collector.take(chunk.stream, chunk.data)

    if stdin is None:
        await collect()
    else:
        with collecting:
            async with alongside(feed):
                await collect()
    if unread:
        raise unread[0]
    return await process.wait()
