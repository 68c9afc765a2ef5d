"""The stream of one command: its frames, its windows, its end. `process.Process` is what users get of it."""

from __future__ import annotations

import errno
import signal as signals
from collections import deque
from collections.abc import AsyncGenerator
from typing import Final, Literal

import anyio

from ramet.errors import (
    ExecError,
    ExecNotExecutableError,
    ExecNotFoundError,
    GuestError,
    GuestLostError,
    GuestTimeoutError,
    ProtocolError,
    RametError,
    UsageError,
)
from ramet.guest.connection import Connection
from ramet.guest.fields import Fields, put_number, shown
from ramet.guest.framing import PAYLOAD_MAX_BYTES, Frame
from ramet.guest.messages import (
    OUTPUT_WINDOW_BYTES,
    STDIN_WINDOW_BYTES,
    ExecRequest,
    Message,
    StartStep,
    exit_status,
    started_pid,
)
from ramet.guest.requests import decode_error
from ramet.guest.waiting import last_look
from ramet.model.command import Chunk, ExitStatus

_GRANT_BYTES: Final = OUTPUT_WINDOW_BYTES // 4
_JOIN_BYTES: Final = 65_536
_PIECES_MAX: Final = 1024
_KILL_LIMIT_S: Final = 2.0
_ALL_THE_CREDIT: Final = 2**31 - 1

_START_ERRORS: Final[dict[int, type[ExecError]]] = {
    errno.ENOENT: ExecNotFoundError,
    errno.EACCES: ExecNotExecutableError,
    errno.ENOEXEC: ExecNotExecutableError,
}


def start_error(request: ExecRequest, payload: bytes) -> ExecError:
    """Make the caller's error from an ERROR that answers EXEC.

    The step that failed decides: ENOENT of execve(2) is a missing program, ENOENT of chdir(2) isn't.
    """
    number, text = decode_error(payload)
    step = Fields(payload).number_or_none(3, 1)
    if step is None:  # an agent of an older ramet, in a snapshot of then: its text begins with the step
        is_program = text.startswith(f"{shown(request.argv[0].encode(errors='surrogateescape')[:200])}: ")
    else:
        is_program = step == StartStep.EXECVE
    kind = _START_ERRORS.get(number, ExecError) if is_program else ExecError
    return kind(f"{request.argv[0]!r} couldn't be started in the guest: {text}")


class CommandStream:
    """A command that runs in the guest, as a receiver of its connection's frames.

    Its output has to be taken (`output`) for it to end: at most 256 KiB wait on the host, and the rest waits
    in the guest together with the command. Every method raises `GuestError` when the connection is lost.
    """

    def __init__(self, connection: Connection, request: ExecRequest) -> None:
        self.pid = 0
        self._connection = connection
        self._request = request
        self._number = 0
        self._changed = anyio.Event()
        self._status: ExitStatus | None = None
        self._error: RametError | None = None
        self._chunks: deque[tuple[Literal["stdout", "stderr"], bytearray]] = deque()
        self._may_receive = OUTPUT_WINDOW_BYTES
        self._consumed = 0
        self._stdin_credit = STDIN_WINDOW_BYTES
        self._stdin_open = request.stdin_open
        self._abandoned = False

    @property
    def program(self) -> str:
        """The command's first word."""
        return self._request.argv[0]

    @property
    def awaits_its_user(self) -> bool:
        """True while output waits to be taken: the command's end comes behind the output."""
        return bool(self._chunks)

    async def write(self, data: bytes) -> None:
        """Feed standard input, as fast as the guest takes it."""
        if not self._request.stdin_open:
            raise UsageError("this command was started without standard input", hint="use stdin_open=True")
        if not self._stdin_open:
            raise UsageError("standard input of this command is closed already")
        view, at = memoryview(data), 0
        while at < len(view) and not self._over():
            if self._stdin_credit == 0:
                await self._changed.wait()
                continue
            piece = bytes(view[at : at + min(self._stdin_credit, PAYLOAD_MAX_BYTES)])
            self._stdin_credit -= len(piece)
            at += len(piece)
            await self._connection.send(Message.STDIN, self._number, piece)
        self._raise_error()

    async def close_stdin(self) -> None:
        """Let the command read end of file after the written bytes. A second call does nothing."""
        if self._stdin_open:
            self._stdin_open = False
            if not self._over():
                await self._connection.send(Message.STDIN_EOF, self._number)

    async def signal(self, number: int) -> None:
        """Send a signal to the command's process group. Does nothing when the command has ended."""
        if not self._over():
            await self._connection.send(Message.SIGNAL, self._number, put_number(1, 4, number))

    async def output(self) -> AsyncGenerator[Chunk, None]:
        """Yield the command's output, in the order in which the guest sent it, to its end."""
        while True:
            while self._chunks:
                stream, data = self._chunks.popleft()
                yield Chunk(stream, bytes(data))
                await self._grant(len(data))
            if self._over():
                break
            await self._changed.wait()
        self._raise_error()

    async def wait(self) -> ExitStatus:
        """Wait for the command's end, and return its status."""
        while not self._over():
            await self._changed.wait()
        self._raise_error()
        assert self._status is not None
        return self._status

    def receive(self, frame: Frame) -> None:
        """Take a frame of this stream from the reader."""
        if (self.pid == 0) != (frame.type == Message.STARTED) and frame.type != Message.ERROR:
            when = "before its start" if self.pid == 0 else "after its start"
            raise ProtocolError(f"the guest sent a frame of type {frame.type:#04x} for a command {when}")
        match frame.type:
            case Message.STDOUT:
                self._take("stdout", frame.payload)
            case Message.STDERR:
                self._take("stderr", frame.payload)
            case Message.STARTED:
                self.pid = started_pid(frame.payload)
            case Message.STDIN_CREDIT:
                self._stdin_credit += Fields(frame.payload).number(1, 4)
                if self._stdin_credit > STDIN_WINDOW_BYTES:
                    raise ProtocolError("the guest granted more standard input than the window holds")
            case Message.EXIT:
                self._status = exit_status(frame.payload)
                self._connection.close(self._number)
            case Message.ERROR:
                if self.pid != 0:
                    self._error = ExecError(decode_error(frame.payload)[1])
                else:
                    self._error = start_error(self._request, frame.payload)
                self._connection.close(self._number)
            case _:
                raise ProtocolError(f"the guest sent a frame of type {frame.type:#04x} for a command")
        self._wake()

    def lost(self, error: GuestError) -> None:
        """Note that the connection has ended. In the guest the command keeps running as an orphan."""
        self._error = type(error)(f"{error.message} while {self._request.argv[0]!r} ran", hint=error.hint)
        self._wake()

    async def begin(self, timeout_s: float) -> None:
        """Send EXEC, and wait until the program runs. Raises `ExecError`, `GuestTimeoutError`."""
        payload = self._request.encode()
        self._number = self._connection.open(self)
        with anyio.move_on_after(timeout_s):
            try:
                await self._connection.send(Message.EXEC, self._number, payload)
            except UsageError:
                self._connection.close(self._number)
                self._number = 0  # too large: nothing was sent, nothing is to be killed
                raise
            await self._answered()
        if self._number != 0:
            await last_look(self._answered)
        if self.pid == 0:
            self._raise_error()
            raise GuestTimeoutError(
                f"{self._request.argv[0]!r} didn't start in the guest within {timeout_s:g} s"
            )

    async def _answered(self) -> None:
        while self.pid == 0 and not self._over():
            await self._changed.wait()

    async def end(self) -> None:
        """Kill the command's process group if it still runs, and await its end: shielded, 2 s at most."""
        if self._number == 0 or self._over():
            self._connection.close(self._number)
            return
        self._abandoned = True
        self._chunks.clear()
        with anyio.move_on_after(_KILL_LIMIT_S, shield=True):
            try:
                kill = put_number(1, 4, signals.SIGKILL)
                await self._connection.send(Message.SIGNAL, self._number, kill)
                # What is in its pipes has to come out before the guest can end the stream.
                credit = put_number(1, 4, _ALL_THE_CREDIT)
                await self._connection.send(Message.CREDIT, self._number, credit)
                while not self._over():
                    await self._changed.wait()
            except GuestError:
                pass  # the connection has ended: the command runs on as an orphan, and is listed
        self._connection.close(self._number)
        if not self._over():
            # A task that still waits for it would wait for ever.
            self.lost(GuestLostError("the command was left"))

    def _take(self, stream: Literal["stdout", "stderr"], data: bytes) -> None:
        if self._abandoned or not data:
            return
        self._may_receive -= len(data)
        if self._may_receive < 0:
            raise ProtocolError("the guest sent more output than it had credit for")
        # Joined, so that a guest that sends single bytes can't make the queue much larger than its content.
        # One that alternates between its streams loses their order among each other, once many pieces wait.
        reach = 2 if len(self._chunks) >= _PIECES_MAX else 1
        for place in range(1, 1 + min(reach, len(self._chunks))):
            name, waiting = self._chunks[-place]
            if name == stream and len(waiting) < _JOIN_BYTES:
                waiting.extend(data)
                return
        self._chunks.append((stream, bytearray(data)))

    async def _grant(self, count: int) -> None:
        self._consumed += count
        if self._consumed < _GRANT_BYTES or self._over() or self._abandoned:
            return
        granted, self._consumed = self._consumed, 0
        self._may_receive += granted
        try:
            await self._connection.send(Message.CREDIT, self._number, put_number(1, 4, granted))
        except GuestError:
            pass  # told when the queue is empty: what came before the loss still belongs to the caller

    def _over(self) -> bool:
        return self._status is not None or self._error is not None

    def _raise_error(self) -> None:
        if self._error is not None:
            raise type(self._error)(self._error.message, hint=self._error.hint)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()
