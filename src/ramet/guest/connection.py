"""A session with an agent: the handshake, one reader for many streams, and the loss of the stream.

After a loss the session continues over another stream, if the agent and the caller allow it.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Final

import anyio
import anyio.abc
import anyio.lowlevel

from ramet.concurrency import alongside
from ramet.errors import GuestError, GuestLostError, GuestTimeoutError, ProtocolError
from ramet.guest.fields import Fields, put, put_number
from ramet.guest.framing import Frame, FrameDecoder, encode_frame
from ramet.guest.messages import NONCE_BYTES, PROTOCOL_VERSION, TOKEN_BYTES, Message, Welcome, hello
from ramet.guest.requests import Answer, Receiver, is_repeatable
from ramet.guest.resumption import (
    ACK_BYTES,
    LONGEST_QUIET_S,
    QUIET_S,
    RESUME_LIMIT_S,
    OpenStream,
    Outbox,
    Patience,
    is_counted,
)
from ramet.guest.waiting import UNANSWERED_HINT, last_look

_RECEIVE_BYTES: Final = 131_072
_RESEND_MOST_S: Final = 2.0
_FRAMES_A_TURN: Final = 256
_BYE_S: Final = 0.5
LOST: Final = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError)


class Connection:
    """Frames over a byte stream, after a handshake. Made by `open_connection`.

    With `reopen`, a stream that ends after the handshake is made again, and the session resumed on it. If the
    agent can't, or doesn't know the session any more, open requests are lost, except those that can be made
    again.
    """

    def __init__(self, stream: anyio.abc.ByteStream, reopen: OpenStream | None = None) -> None:
        self.welcome: Welcome | None = None
        self._stream = stream
        self._receivers: dict[int, Receiver] = {}
        self._last_number = 0
        self._sending = anyio.Lock()
        self._failure: GuestError | None = None
        self._nonces: set[bytes] = set()
        self._decided = anyio.Event()  # welcomed, or lost

        self._reopen = reopen
        self._token = os.urandom(TOKEN_BYTES)
        self._keeps = False  # the agent can resume this session: frames are counted and kept
        self._away: anyio.Event | None = None  # there is no stream; set when there is one again, or won't be
        self._greeted = anyio.Event()  # welcomed on the present stream
        self._limit = anyio.CancelScope()
        self._outbox = Outbox()
        self._resumed = False
        self._received = 0
        self._untold_bytes = self._unasked_bytes = 0
        self._heard = self._asking = False
        self._due = anyio.Event()

    def open(self, receiver: Receiver) -> int:
        """Return a stream number for `receiver` that this session has never used.

        Raises after the connection's loss.
        """
        self._raise_failure()
        self._last_number += 1
        self._receivers[self._last_number] = receiver
        return self._last_number

    def close(self, number: int) -> None:
        """Ignore later frames of that stream."""
        self._receivers.pop(number, None)

    async def send(self, type_: Message, number: int, payload: bytes | Callable[[], bytes] = b"") -> None:
        """Send a frame; a callable makes its payload at the moment of sending.

        Raises `GuestError` when the connection has ended, `UsageError` (nothing sent) when the payload is too
        large. After a cancellation half way, the guest drops the part of the frame that it got. While the
        stream is being replaced, the call waits.
        """
        while True:
            async with self._sending:
                self._raise_failure()
                if (away := self._away) is None:
                    await self._put(type_, number, payload if isinstance(payload, bytes) else payload())
                    return
            await away.wait()

    async def _put(self, type_: Message, number: int, payload: bytes) -> None:
        """Send a frame; the caller has the lock.

        If the stream is lost with the frame and may be replaced, the reader deals with that: the frame is
        sent again, or its stream's receiver is told.
        """
        frame = encode_frame(type_, number, payload)
        kept = self._keeps and is_counted(type_)
        if kept:
            try:
                self._outbox.add(frame)
            except ProtocolError as error:
                self._fail(error)
                await self._stream.aclose()
                raise
            self._unasked_bytes += len(frame)
            if self._unasked_bytes >= ACK_BYTES:
                self._due.set()
        stream = self._stream
        try:
            await stream.send(frame)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError) as error:
            if self._may_return():
                await stream.aclose()  # perhaps only this direction has ended: the reader shall see it
                return
            self._fail(GuestLostError("the connection to the guest's agent broke"))
            raise self._fresh_failure() from error
        except anyio.get_cancelled_exc_class():
            if kept:
                self._outbox.take_back()
            raise

    async def request(
        self,
        type_: Message,
        payload: bytes | Callable[[], bytes],
        expects: Message,
        *,
        what: str,
        timeout_s: float | None,
        repeatable: bool = True,
    ) -> Answer:
        """Send a request and wait for its answer.

        After an error the connection is usable, unless it failed itself.

        `repeatable`: the request does no harm when made twice.

        Raises `GuestTimeoutError`; `GuestError` with the guest's reason for a refusal, or when the stream
        ends.
        """
        answer = Answer(expects, what)

        def stamped() -> bytes:
            answer.sent_at_s = time.monotonic()
            return payload if isinstance(payload, bytes) else payload()

        if repeatable:
            answer.repeat = (type_, stamped)
        number = self.open(answer)
        try:
            with anyio.move_on_after(timeout_s):
                await self.send(type_, number, stamped)
                await answer.done.wait()
            if not answer.done.is_set():
                await last_look(answer.done.wait)
        finally:
            self.close(number)
        if answer.error is not None:
            raise answer.error
        if not answer.done.is_set():
            raise GuestTimeoutError(f"the guest's agent didn't answer {what} within {timeout_s:g} s")
        return answer

    async def read(self) -> None:
        """Read until the stream ends finally or is cancelled; tell every failure to the waiting receivers."""
        patience = Patience()
        began_s = anyio.current_time()
        error = await self._read()
        while isinstance(error, GuestLostError) and self._may_return():
            if self._away is None:
                self._away = anyio.Event()
            if not self._keeps:
                self._abandon(error)
            await self._stream.aclose()
            patience.ended(seconds=anyio.current_time() - began_s, welcomed=self._greeted.is_set())
            self._greeted = anyio.Event()
            if (pause_s := patience.next_pause_s()) is None:
                break
            await anyio.sleep(pause_s)
            began_s = anyio.current_time()
            again: GuestError | None = None
            with anyio.move_on_after(RESUME_LIMIT_S) as self._limit:
                again = await self._return()
            if again is None:
                break
            error = again
        self._fail(error)
        if isinstance(error, ProtocolError):
            await self._stream.aclose()

    async def _read(self) -> GuestError:
        """Read until the present stream ends, and return the reason."""
        decoder = FrameDecoder()
        try:
            while True:
                data = await self._stream.receive(_RECEIVE_BYTES)
                self._heard = True
                self._untold_bytes += len(data)
                for count, frame in enumerate(decoder.feed(data), 1):
                    self._dispatch(frame)
                    if count % _FRAMES_A_TURN == 0:  # a flood of small frames must not hold up other guests
                        await anyio.lowlevel.checkpoint()
                if self._untold_bytes >= ACK_BYTES:
                    self._due.set()
        except LOST:
            return GuestLostError("the connection to the guest's agent ended")
        except ProtocolError as error:
            return error

    def _may_return(self) -> bool:
        """Tell whether a lost stream is replaced: to resume the session, or to repeat requests."""
        return (
            self._reopen is not None
            and self.welcome is not None
            and self._failure is None
            and (self._keeps or any(is_repeatable(receiver) for receiver in self._receivers.values()))
        )

    async def _return(self) -> GuestError | None:
        """Make a new stream, resume the session there and read until the stream ends.

        Returns the reason of its end.

        None when no stream can be made any more.
        """
        assert self._reopen is not None
        try:
            async with self._reopen() as stream:
                self._stream = stream
                async with alongside(self._resume):
                    return await self._read()
        except GuestLostError as error:
            return error
        except GuestError:  # there is no VMM any more, or it isn't the same
            return None

    async def _resume(self) -> None:
        """Send HELLO, then frames that the agent hasn't had.

        HELLO is sent once, because the agent itself has accepted such a stream.
        """
        nonce = os.urandom(NONCE_BYTES)
        self._nonces = {nonce}
        greeting = self._hello(nonce) + put_number(4, 8, self._received)
        stream = self._stream
        try:
            async with self._sending:
                await stream.send(encode_frame(Message.HELLO, 0, greeting))
                await self._greeted.wait()
                self._limit.deadline = math.inf
                self._asking = False
                for frame in self._outbox.frames():
                    await stream.send(frame)
                for number, receiver in [] if self._resumed else list(self._receivers.items()):
                    if isinstance(receiver, Answer) and receiver.repeat is not None:
                        await self._put(receiver.repeat[0], number, receiver.repeat[1]())
                assert self._away is not None
                self._away.set()
                self._away = None
        except LOST:
            await stream.aclose()
        except GuestError:
            pass  # told to everybody already

    async def heartbeat(self) -> None:
        """Acknowledge what came, and ask a guest for a frame that is silent while a request is open.

        The questions become rarer, but don't stop while the guest is silent: a guest may have taken a
        question, and then lost the connection before it could answer, which shows when something is sent.
        """
        quiet_s = QUIET_S
        with suppress(GuestError):  # the connection has failed, as everybody who waits is told
            while True:
                with anyio.move_on_after(quiet_s):
                    await self._due.wait()
                due, heard = self._due.is_set(), self._heard
                self._heard = False
                if due:
                    self._due = anyio.Event()
                silent = bool(self._receivers) and not heard
                quiet_s = min(quiet_s * 2, LONGEST_QUIET_S) if silent and self._asking else QUIET_S
                if self._keeps and self._away is None and (due or silent):
                    self._asking = True
                    self._untold_bytes = self._unasked_bytes = 0
                    await self.send(Message.ACK, 0, lambda: put_number(1, 8, self._received))

    def probe_liveness(self) -> None:
        """Ask the guest for a frame now: this shows whether the connection was cut in the guest."""
        self._due.set()

    async def bye(self) -> None:
        """Tell the guest that the session is over, so that it doesn't wait for its client."""
        if self._keeps and self._away is None and self._failure is None:
            # An agent that isn't told waits for its client for a while, and then ends the session.
            with anyio.move_on_after(_BYE_S, shield=True), suppress(GuestError):
                await self.send(Message.BYE, 0)

    def end(self) -> None:
        """End the session, also for receivers that still wait."""
        self._fail(GuestLostError("the session with the guest's agent was closed"))

    async def shake_hands(self, resend_s: float) -> Welcome:
        """Send HELLO until it is answered.

        Raises `GuestError` when the stream ends or the version differs.
        """
        for pause_s in resend_pauses_s(resend_s):
            if self._decided.is_set():
                break
            nonce = os.urandom(NONCE_BYTES)
            self._nonces.add(nonce)
            await self.send(Message.HELLO, 0, self._hello(nonce))
            with anyio.move_on_after(pause_s):
                await self._decided.wait()
        self._raise_failure()
        assert self.welcome is not None
        require_version(self.welcome)
        return self.welcome

    def _hello(self, nonce: bytes) -> bytes:
        return hello(nonce) if self._reopen is None else hello(nonce) + put(3, self._token)

    def _dispatch(self, frame: Frame) -> None:
        if not self._greeted.is_set() or (frame.type == Message.WELCOME and frame.stream == 0):
            self._greet(frame)
            return
        if frame.type == Message.ACKED and frame.stream == 0:
            self._asking = False
            if self._keeps:
                self._outbox.acknowledge(Fields(frame.payload).number(1, 8))
            return
        self._received += is_counted(frame.type)
        if (receiver := self._receivers.get(frame.stream)) is not None:
            receiver.receive(frame)

    def _greet(self, frame: Frame) -> None:
        if frame.type != Message.WELCOME or frame.stream != 0:
            return
        try:
            nonce, welcome = Welcome.decode(frame.payload)
        except ProtocolError:
            return  # may be another session's, cut and joined by a fork
        # Any nonce of ours will do: the guest ends each session before it begins the next, so that what
        # we send after the last HELLO belongs to the last. To insist on the last would never end with a slow
        # guest.
        if nonce not in self._nonces:
            return
        if self.welcome is not None and not self._greeted.is_set():
            self._nonces = set()
            self._greet_again(welcome)
        else:
            self._keeps = self._reopen is not None and welcome.grace_ms is not None
            self._received = 0
        self.welcome = welcome
        self._greeted.set()
        self._decided.set()

    def _greet_again(self, welcome: Welcome) -> None:
        if welcome.version != PROTOCOL_VERSION:
            raise ProtocolError(f"the guest's agent speaks protocol {welcome.version} all at once")
        self._resumed = self._keeps and welcome.received is not None
        if self._keeps and welcome.received is not None:
            self._outbox.acknowledge(welcome.received)
            return
        self._keeps = welcome.grace_ms is not None
        self._received = 0
        self._outbox.restart()
        self._abandon(
            GuestLostError("the connection to the guest's agent ended, and it knows nothing of its session")
        )

    def _abandon(self, error: GuestError) -> None:
        """Tell the error to all receivers except those whose requests can be repeated."""
        for number, receiver in list(self._receivers.items()):
            if not is_repeatable(receiver):
                del self._receivers[number]
                receiver.lost(type(error)(error.message, hint=error.hint))

    def _fail(self, error: GuestError) -> None:
        if self._failure is not None:
            return
        self._failure = error
        self._decided.set()
        if self._away is not None:
            self._away.set()
        receivers, self._receivers = self._receivers, {}
        for receiver in receivers.values():
            receiver.lost(self._fresh_failure())

    def _fresh_failure(self) -> GuestError:
        assert self._failure is not None
        return type(self._failure)(self._failure.message, hint=self._failure.hint)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._fresh_failure()


def resend_pauses_s(first_s: float = 0.25) -> Iterator[float]:
    """Yield the seconds to wait for a WELCOME before HELLO is sent again, each longer, up to 2 s."""
    pause_s = first_s
    while True:
        yield pause_s
        pause_s = min(pause_s * 1.5, _RESEND_MOST_S)


def require_version(welcome: Welcome) -> None:
    """Raise `GuestError` unless that agent speaks this protocol."""
    if welcome.version != PROTOCOL_VERSION:
        raise GuestError(
            f"the guest's agent speaks protocol {welcome.version}, this ramet {PROTOCOL_VERSION}",
            hint="boot the guest again from an image of this ramet",
        )


@asynccontextmanager
async def open_connection(
    stream: anyio.abc.ByteStream, *, timeout_s: float, resend_s: float, reopen: OpenStream | None = None
) -> AsyncIterator[Connection]:
    """Open a connection and begin its session. Leaving the block stops reading; the caller closes the stream.

    With `reopen`, other streams replace the stream when it ends after the handshake.

    Raises `GuestTimeoutError` when no agent answers within `timeout_s`.
    """
    connection = Connection(stream, reopen)
    async with alongside(connection.read):
        with anyio.move_on_after(timeout_s):
            await connection.shake_hands(resend_s)
        if connection.welcome is None:
            await last_look(partial(connection.shake_hands, resend_s))
        if connection.welcome is None:
            raise GuestTimeoutError(
                f"no agent answered in the guest within {timeout_s:g} s", hint=UNANSWERED_HINT
            )
        async with alongside(connection.heartbeat):
            try:
                yield connection
            finally:
                await connection.bye()
                connection.end()
