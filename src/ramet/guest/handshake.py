"""The single request to a guest that has just been booted or resumed, and its answer.

`connection.py` has sessions that last: a reader beside their users, streams that are replaced. A fork's first
request needs none of that, and forks are many: here one task sends and receives.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

import anyio
import anyio.abc

from ramet.errors import GuestError, GuestLostError, ProtocolError
from ramet.guest.connection import LOST, require_version, resend_pauses_s
from ramet.guest.framing import Frame, FrameDecoder, encode_frame
from ramet.guest.messages import NONCE_BYTES, Message, Welcome, hello
from ramet.guest.requests import decode_error

_RECEIVE_BYTES: Final = 65_536


class Reply(NamedTuple):
    """An answer, and when its request was sent and it came, in nanoseconds of the host's wall clock."""

    payload: bytes
    sent_ns: int
    arrived_ns: int


async def handshake(
    stream: anyio.abc.ByteStream,
    type_: Message,
    payload: Callable[[int], bytes],
    expects: Message,
    *,
    what: str,
) -> Reply:
    """Begin a session on `stream`, even if old data is in it, and make one repeatable request.

    HELLO and the request go together, so that the guest is woken once. Until a HELLO is answered, both are
    sent again from time to time: a guest that boots has no agent yet, and a VMM may drop data that comes
    before the guest's driver is there. `payload` is given the time of sending. The caller closes the stream;
    the next request on it begins a new session.

    Waits without a limit. Raises `GuestLostError` when the stream ends, `GuestError` when the guest refuses
    or speaks another version, `ProtocolError` when it answers something else.
    """
    sent: dict[int, int] = {}  # the time of sending, by stream
    nonces: set[bytes] = set()
    frames = _frames(stream)
    pauses_s = resend_pauses_s()
    welcomed = False
    try:
        while not welcomed:
            nonces.add(nonce := os.urandom(NONCE_BYTES))
            number = len(sent) + 1
            sent[number] = sent_ns = time.time_ns()
            await stream.send(
                encode_frame(Message.HELLO, 0, hello(nonce)) + encode_frame(type_, number, payload(sent_ns))
            )
            with anyio.move_on_after(next(pauses_s)):
                while not welcomed:
                    welcomed = _is_welcome(await frames(), nonces)
        while (frame := await frames()).stream not in sent:
            pass
        return Reply(_answer(frame, expects, what), sent[frame.stream], time.time_ns())
    except LOST as error:
        raise GuestLostError("the connection to the guest's agent ended") from error


def _frames(stream: anyio.abc.ByteStream) -> Callable[[], Awaitable[Frame]]:
    """Return a function that awaits the next frame. A cancelled call loses nothing."""
    decoder = FrameDecoder()
    waiting: deque[Frame] = deque()

    async def following() -> Frame:
        while not waiting:
            waiting.extend(decoder.feed(await stream.receive(_RECEIVE_BYTES)))
        return waiting.popleft()

    return following


def _is_welcome(frame: Frame, nonces: set[bytes]) -> bool:
    """Tell whether the frame answers a HELLO of this session.

    Frames before it are another session's, cut by a fork.
    """
    if frame.type != Message.WELCOME or frame.stream != 0:
        return False
    try:
        nonce, welcome = Welcome.decode(frame.payload)
    except ProtocolError:
        return False
    if nonce not in nonces:
        return False
    require_version(welcome)
    return True


def _answer(frame: Frame, expects: Message, what: str) -> bytes:
    if frame.type == Message.ERROR:
        _errno, text = decode_error(frame.payload)
        raise GuestError(f"the guest refused {what}: {text}")
    if frame.type != expects:
        raise ProtocolError(f"the guest answered {what} with a frame of type {frame.type:#04x}")
    return frame.payload
