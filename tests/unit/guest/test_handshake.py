"""A guest's first answer, asked for by one task: of the real agent, and of a guest that is slow or lies."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from ramet.errors import GuestError, GuestLostError, ProtocolError
from ramet.guest.fields import Fields, put, put_number, put_text
from ramet.guest.framing import Frame, FrameDecoder, encode_frame
from ramet.guest.handshake import Reply, handshake
from ramet.guest.messages import IdentityRequest, Message
from ramet.system.streams import SocketStream, connect_stream

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

PROOF = os.urandom(16)


async def ping(stream: SocketStream) -> Reply:
    return await handshake(stream, Message.PING, lambda _: PROOF, Message.PONG, what="a ping")


@pytest.mark.usefixtures("agent_process")
async def test_the_agent_answers_behind_what_a_parent_left_in_the_stream(tmp_path: Path) -> None:
    async with connect_stream(tmp_path, "agent0.sock") as stream:
        await stream.send(encode_frame(Message.EXEC, 7, b"cut off")[:-9])
        reply = await ping(stream)
    assert Fields(reply.payload).one(1) == PROOF
    assert reply.sent_ns <= reply.arrived_ns


@pytest.mark.usefixtures("agent_process")
async def test_what_the_agent_refuses_is_said(tmp_path: Path) -> None:
    nobody = IdentityRequest(1, bytes(32), "h", "not a machine-id")
    async with connect_stream(tmp_path, "agent0.sock") as stream:
        with pytest.raises(GuestError, match="the guest refused to be somebody"):
            await handshake(
                stream, Message.IDENTITY, nobody.encode, Message.IDENTITY_DONE, what="to be somebody"
            )


class Peer:
    """A guest's end, played by a test."""

    def __init__(self, stream: SocketStream) -> None:
        self.stream = stream
        self._decoder = FrameDecoder()
        self._frames: list[Frame] = []

    async def next(self) -> Frame:
        while not self._frames:
            self._frames = self._decoder.feed(await self.stream.receive())
        return self._frames.pop(0)

    async def hello(self) -> tuple[bytes, int]:
        """The nonce of the next HELLO, and the stream of the request that came with it."""
        hello, request = await self.next(), await self.next()
        assert (hello.type, request.type) == (Message.HELLO, Message.PING)
        return Fields(hello.payload).one(1), request.stream

    async def send(self, *frames: bytes) -> None:
        await self.stream.send(b"".join(frames))


def welcome(nonce: bytes, version: int = 1) -> bytes:
    fields = put(1, nonce) + put_number(2, 2, version) + put_text(3, "0") + put_number(4, 8, 1)
    return encode_frame(Message.WELCOME, 0, fields + put_number(5, 2, 1))


@asynccontextmanager
async def against(play: Callable[[Peer], Coroutine[Any, Any, None]]) -> AsyncIterator[SocketStream]:
    """The host's end of a connection to a guest that plays its part beside."""
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setblocking(False)
    async with (
        SocketStream(ours) as stream,
        SocketStream(theirs) as other,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(play, Peer(other))
        yield stream
        tasks.cancel_scope.cancel()


async def test_it_is_asked_again_and_what_comes_before_a_welcome_is_another_sessions() -> None:
    asked: list[int] = []

    async def play(peer: Peer) -> None:
        _, first = await peer.hello()
        await peer.send(welcome(bytes(16)), encode_frame(Message.PONG, first, b"stale"), b"\x7ecrumbs\x7e")
        nonce, second = await peer.hello()
        asked.extend((first, second))
        await peer.send(welcome(nonce), encode_frame(Message.STDOUT, 99, b"x"))
        await peer.send(encode_frame(Message.PONG, second, b"fresh"))

    async with against(play) as stream:
        reply = await ping(stream)
    assert reply.payload == b"fresh"
    assert len(set(asked)) == 2, "an answer has to tell which sending it belongs to"


async def test_a_late_welcome_to_the_first_hello_will_do() -> None:
    async def play(peer: Peer) -> None:
        nonce, first = await peer.hello()
        await peer.hello()
        await peer.send(welcome(nonce), encode_frame(Message.PONG, first, b"late"))

    async with against(play) as stream:
        assert (await ping(stream)).payload == b"late"


@pytest.mark.parametrize(
    ("answer", "error", "match"),
    [
        (lambda nonce, stream: welcome(nonce, version=9), GuestError, "speaks protocol 9"),
        (
            lambda nonce, stream: welcome(nonce) + encode_frame(Message.STARTED, stream, b""),
            ProtocolError,
            "with a frame of type 0x83",
        ),
        (
            lambda nonce, stream: welcome(nonce) + encode_frame(Message.ERROR, stream, b"?"),
            ProtocolError,
            "field",
        ),
    ],
    ids=["another version", "another message", "a malformed refusal"],
)
async def test_what_is_no_answer_is_an_error(
    answer: Callable[[bytes, int], bytes], error: type[Exception], match: str
) -> None:
    async def play(peer: Peer) -> None:
        await peer.send(answer(*await peer.hello()))

    async with against(play) as stream:
        with pytest.raises(error, match=match):
            await ping(stream)


async def test_a_stream_that_ends_is_lost() -> None:
    async def play(peer: Peer) -> None:
        await peer.hello()
        await peer.stream.aclose()

    async with against(play) as stream:
        with pytest.raises(GuestLostError):
            await ping(stream)


@pytest.mark.timing
async def test_a_guest_that_floods_holds_nobody_up() -> None:
    """Frames without end that are no answer: others have their turns, and the wait ends when told to.

    By turns and not by time: how many there are in a second is for the machine to say.
    """

    async def play(peer: Peer) -> None:
        crumbs = encode_frame(Message.STDOUT, 99, b"") * 1000
        while True:
            await peer.send(crumbs)

    turns = 0
    with anyio.fail_after(60):
        async with against(play) as stream, anyio.create_task_group() as tasks:

            async def others() -> None:
                nonlocal turns
                while turns < 20:
                    await anyio.sleep(0.001)
                    turns += 1
                tasks.cancel_scope.cancel()

            tasks.start_soon(others)
            await ping(stream)
    assert turns == 20
