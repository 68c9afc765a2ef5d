"""The byte stream: whole, both ways at once, cancelled at the worst moment, closed under somebody who
waits.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import anyio
import pytest

from ramet.system.streams import SocketStream

pytestmark = pytest.mark.anyio


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    yield ours, theirs
    ours.close()
    theirs.close()


@asynccontextmanager
async def streams(
    pair: tuple[socket.socket, socket.socket],
) -> AsyncIterator[tuple[SocketStream, SocketStream]]:
    async with SocketStream(pair[0]) as ours, SocketStream(pair[1]) as theirs:
        yield ours, theirs


async def test_much_goes_both_ways_at_once(pair: tuple[socket.socket, socket.socket]) -> None:
    data = os.urandom(5_000_000)
    received = {"ours": bytearray(), "theirs": bytearray()}

    async def read(name: str, stream: SocketStream) -> None:
        async for chunk in stream:
            received[name] += chunk

    async def write(stream: SocketStream) -> None:
        await stream.send(data)
        await stream.send_eof()

    async with streams(pair) as (ours, theirs), anyio.create_task_group() as tasks:
        for name, stream in (("ours", ours), ("theirs", theirs)):
            tasks.start_soon(read, name, stream)
            tasks.start_soon(write, stream)
    assert received == {"ours": data, "theirs": data}


@pytest.mark.timing
async def test_data_that_comes_while_a_receive_is_cancelled_is_kept(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """In the same turn of the loop: nothing is reported to it, and nothing is lost."""
    reported: list[object] = []
    loop = asyncio.get_running_loop()
    previous = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: reported.append(context))
    try:
        async with streams(pair) as (ours, _):
            for number in range(200):
                receiving = asyncio.ensure_future(ours.receive())
                await asyncio.sleep(0.0005)
                pair[1].send(b"%3d" % number)
                # The loop sees the data in its next turn, in which the cancellation is delivered, too.
                loop.call_soon(receiving.cancel)
                done, _ = await asyncio.wait({receiving})
                (task,) = done
                assert (b"" if task.cancelled() else task.result()) + (
                    await ours.receive() if task.cancelled() else b""
                ) == b"%3d" % number
    finally:
        loop.set_exception_handler(previous)
    assert reported == []


async def test_the_end_and_a_close(pair: tuple[socket.socket, socket.socket]) -> None:
    async with streams(pair) as (ours, theirs):
        await theirs.send(b"last")
        await theirs.aclose()
        assert await ours.receive() == b"last"
        with pytest.raises(anyio.EndOfStream):
            await ours.receive()
        with pytest.raises(anyio.BrokenResourceError):
            await ours.send(b"x" * 1_000_000)
        with pytest.raises(anyio.ClosedResourceError):
            await theirs.receive()


async def test_a_close_ends_the_wait_of_another_task(pair: tuple[socket.socket, socket.socket]) -> None:
    ended = []

    async def wait(stream: SocketStream) -> None:
        with pytest.raises(anyio.ClosedResourceError):
            await stream.receive()
        ended.append(True)

    async with streams(pair) as (ours, _), anyio.create_task_group() as tasks:
        tasks.start_soon(wait, ours)
        await anyio.wait_all_tasks_blocked()
        await ours.aclose()
    assert ended == [True]
