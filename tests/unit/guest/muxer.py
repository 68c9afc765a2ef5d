"""Firecracker's side of `vsock.sock`, as far as its clients see it, in front of an agent on a UNIX socket."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
import anyio.abc

from ramet.paths import VSOCK_SOCKET
from ramet.system.streams import connect_stream

CONNECT = b"CONNECT 1024\n"

Deed = Callable[[anyio.abc.ByteStream], Awaitable[None]]


def listen(directory: Path, queue: int = 128) -> socket.socket:
    """A listening `vsock.sock`, however long the directory's path is."""
    directory_fd = os.open(directory, os.O_PATH)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.setblocking(False)
    try:
        listener.bind(f"/proc/self/fd/{directory_fd}/{VSOCK_SOCKET}")
    finally:
        os.close(directory_fd)
    listener.listen(queue)
    return listener


async def asked(stream: anyio.abc.ByteStream) -> None:
    """Takes the request, which has to come in one piece: Firecracker reads what is there and no more."""
    assert await stream.receive() == CONNECT


async def drops(stream: anyio.abc.ByteStream) -> None:
    """Nobody listens in the guest."""
    await asked(stream)


async def accepts_and_loses(stream: anyio.abc.ByteStream) -> None:
    """The guest accepts, and then learns that it was restored."""
    await asked(stream)
    await stream.send(b"OK 1073741824\n")
    await stream.receive()


def says(answer: bytes) -> Deed:
    """Answers like that and waits for the client to leave."""

    async def deed(stream: anyio.abc.ByteStream) -> None:
        await asked(stream)
        await stream.send(answer)
        await stream.receive()

    return deed


def serves(agent: Path) -> Deed:
    """Accepts, and joins the client with the agent on that socket."""

    async def deed(stream: anyio.abc.ByteStream) -> None:
        await asked(stream)
        async with connect_stream(agent.parent, agent.name) as guest, anyio.create_task_group() as tasks:
            await stream.send(b"OK 1073741824\n")
            tasks.start_soon(_pass_on, guest, stream)
            tasks.start_soon(_pass_on, stream, guest)

    return deed


async def _pass_on(source: anyio.abc.ByteStream, target: anyio.abc.ByteStream) -> None:
    try:
        while True:
            await target.send(await source.receive())
    except (anyio.EndOfStream, anyio.BrokenResourceError):
        with suppress(OSError):  # its other end may have gone first
            await target.send_eof()


@asynccontextmanager
async def muxer(directory: Path, *deeds: Deed) -> AsyncIterator[list[Deed]]:
    """Does the deeds to the connections in their order, the last to all that follow. Gives those begun."""
    done: list[Deed] = []

    async def handle(stream: anyio.abc.SocketStream) -> None:
        deed = deeds[min(len(done), len(deeds) - 1)]
        done.append(deed)
        async with stream:
            with suppress(anyio.EndOfStream, anyio.BrokenResourceError):  # the client has left
                await deed(stream)

    async with (
        await anyio.abc.SocketListener.from_socket(listen(directory)) as listener,
        anyio.create_task_group() as connections,  # each ends when its client has left
        anyio.create_task_group() as serving,
    ):
        serving.start_soon(listener.serve, handle, connections)
        yield done
        serving.cancel_scope.cancel()
