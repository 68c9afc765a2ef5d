"""One session with an agent: the handshake, one reader for many streams, and what happens when the stream
ends.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol

import anyio
import anyio.abc
import anyio.lowlevel

from ramet.errors import GuestError, GuestLostError, GuestTimeoutError, ProtocolError
from ramet.guest.framing import Frame, FrameDecoder, encode_frame
from ramet.guest.messages import (
    NONCE_BYTES,
    PROTOCOL_VERSION,
    Fields,
    Message,
    Welcome,
    put,
    put_number,
)

_RECEIVE_BYTES: Final = 131_072
_RESEND_MOST_S: Final = 2.0
_FRAMES_A_TURN: Final = 256


class Receiver(Protocol):
    """Whoever a stream number belongs to. Both are called by the reader, and may not wait."""

    def receive(self, frame: Frame) -> None:
        """Takes a frame of the stream. `ProtocolError` ends the whole connection."""

    def lost(self, error: GuestError) -> None:
        """The connection has ended: nothing more will come."""


class Connection:
    """Frames over a byte stream, after a handshake. Made by `open_connection`."""

    def __init__(self, stream: anyio.abc.ByteStream) -> None:
        self.welcome: Welcome | None = None
        self._stream = stream
        self._receivers: dict[int, Receiver] = {}
        self._last_number = 0
        self._sending = anyio.Lock()
        self._failure: GuestError | None = None
        self._nonces: set[bytes] = set()
        self._decided = anyio.Event()  # welcomed, or lost

    def open(self, receiver: Receiver) -> int:
        """A stream number that was never used in this session, for `receiver`. Raises when the connection is
        lost.
        """
        self._raise_failure()
        self._last_number += 1
        self._receivers[self._last_number] = receiver
        return self._last_number

    def close(self, number: int) -> None:
        """From now on frames of that stream are ignored."""
        self._receivers.pop(number, None)

    async def send(self, type_: Message, number: int, payload: bytes | Callable[[], bytes] = b"") -> None:
        """Sends one frame; a callable makes its payload at the moment of sending.

        Raises `GuestError` when the connection has ended, `UsageError` (nothing sent) when the payload is too
        large. Cancelled half way, the guest drops what it got of the frame.
        """
        async with self._sending:
            self._raise_failure()
            frame = encode_frame(type_, number, payload if isinstance(payload, bytes) else payload())
            try:
                await self._stream.send(frame)
            except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError) as error:
                self._fail(GuestLostError("the connection to the guest's agent broke"))
                raise self._fresh_failure() from error

    async def request(
        self,
        type_: Message,
        payload: bytes | Callable[[], bytes],
        expects: Message,
        *,
        what: str,
        timeout_s: float | None,
    ) -> Answer:
        """Sends a request and waits for its answer. After a failure the connection is as good as before,
        unless it is the connection that failed.

        Raises `GuestTimeoutError`; `GuestError` with the guest's reason for a refusal, or when the stream
        ends.
        """
        answer = Answer(expects, what)

        def stamped() -> bytes:
            answer.sent_at_s = time.monotonic()
            return payload if isinstance(payload, bytes) else payload()

        number = self.open(answer)
        try:
            with anyio.move_on_after(timeout_s):
                await self.send(type_, number, stamped)
                await answer.done.wait()
        finally:
            self.close(number)
        if answer.error is not None:
            raise answer.error
        if not answer.done.is_set():
            raise GuestTimeoutError(f"the guest's agent didn't answer {what} within {timeout_s:g} s")
        return answer

    async def read(self) -> None:
        """Reads until the stream ends or is cancelled; every failure goes to those who wait."""
        decoder = FrameDecoder()
        try:
            while True:
                for count, frame in enumerate(decoder.feed(await self._stream.receive(_RECEIVE_BYTES)), 1):
                    self._dispatch(frame)
                    if count % _FRAMES_A_TURN == 0:  # a flood of small frames must not hold up other guests
                        await anyio.lowlevel.checkpoint()
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
            self._fail(GuestLostError("the connection to the guest's agent ended"))
        except ProtocolError as error:
            self._fail(error)
            await self._stream.aclose()

    async def shake_hands(self, resend_s: float) -> Welcome:
        """HELLO until one of them is answered. Raises `GuestError` when the stream ends or the version
        differs.
        """
        interval_s = resend_s
        while not self._decided.is_set():
            nonce = os.urandom(NONCE_BYTES)
            self._nonces.add(nonce)
            await self.send(Message.HELLO, 0, put(1, nonce) + put_number(2, 2, PROTOCOL_VERSION))
            with anyio.move_on_after(interval_s):
                await self._decided.wait()
            interval_s = min(interval_s * 1.5, _RESEND_MOST_S)
        self._raise_failure()
        assert self.welcome is not None
        if self.welcome.version != PROTOCOL_VERSION:
            raise GuestError(
                f"the guest's agent speaks protocol {self.welcome.version}, this ramet {PROTOCOL_VERSION}",
                hint="boot the guest again from an image of this ramet",
            )
        return self.welcome

    def _dispatch(self, frame: Frame) -> None:
        if self.welcome is None:
            self._greet(frame)
        elif (receiver := self._receivers.get(frame.stream)) is not None:
            receiver.receive(frame)

    def _greet(self, frame: Frame) -> None:
        if frame.type != Message.WELCOME or frame.stream != 0:
            return
        try:
            nonce, welcome = Welcome.decode(frame.payload)
        except ProtocolError:
            return  # may be another session's, cut and joined by a fork
        # Any of our own nonces will do: the guest ends each session before it begins the next, so that what
        # we send after the last HELLO belongs to the last. To insist on the last would never end with a slow
        # guest.
        if nonce in self._nonces:
            self.welcome = welcome
            self._decided.set()

    def _fail(self, error: GuestError) -> None:
        if self._failure is not None:
            return
        self._failure = error
        self._decided.set()
        receivers, self._receivers = self._receivers, {}
        for receiver in receivers.values():
            receiver.lost(self._fresh_failure())

    def _fresh_failure(self) -> GuestError:
        assert self._failure is not None
        return type(self._failure)(self._failure.message, hint=self._failure.hint)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._fresh_failure()


class Answer:
    """The receiver of a single answer. `done` is set when `payload` or `error` is there."""

    def __init__(self, expects: Message, what: str) -> None:
        self.payload = b""
        self.error: GuestError | None = None
        self.done = anyio.Event()
        self.sent_at_s = self.arrived_at_s = 0.0
        self.arrived_realtime_ns = 0
        self._expects = expects
        self._what = what

    def receive(self, frame: Frame) -> None:
        """Takes the answer, or the guest's refusal."""
        self.arrived_at_s, self.arrived_realtime_ns = time.monotonic(), time.time_ns()
        if frame.type == Message.ERROR:
            _errno, text = decode_error(frame.payload)
            self.error = GuestError(f"the guest refused {self._what}: {text}")
        elif frame.type == self._expects:
            self.payload = frame.payload
        else:
            raise ProtocolError(f"the guest answered {self._what} with a frame of type {frame.type:#04x}")
        self.done.set()

    def lost(self, error: GuestError) -> None:
        """Nothing will come."""
        self.error = type(error)(f"{error.message} during {self._what}", hint=error.hint)
        self.done.set()


def decode_error(payload: bytes) -> tuple[int, str]:
    """errno and text of an ERROR."""
    fields = Fields(payload)
    return fields.number(1, 4), fields.text(2)


@asynccontextmanager
async def open_connection(
    stream: anyio.abc.ByteStream, *, timeout_s: float, resend_s: float
) -> AsyncIterator[Connection]:
    """A connection whose session has begun. Leaving the block stops reading; the stream stays the caller's to
    close.

    Raises `GuestTimeoutError` when no agent answers within `timeout_s`.
    """
    connection = Connection(stream)
    async with beside(connection.read):
        with anyio.move_on_after(timeout_s):
            await connection.shake_hands(resend_s)
        if connection.welcome is None:
            raise GuestTimeoutError(f"no agent answered in the guest within {timeout_s:g} s")
        yield connection


@asynccontextmanager
async def beside(work: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Runs `work` next to the block and cancels it at the block's end. Unlike from a bare task group, the
    block's own error comes out as itself and not in an exception group.
    """
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work)
        try:
            yield
        except Exception as error:
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
