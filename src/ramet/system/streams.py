"""A byte stream over a UNIX socket that survives being cancelled.

anyio's own (4.16) sets a future from the reader's callback without asking whether it is done: when data
arrives in the very turn of the loop in which a receive is cancelled, the loop reports an InvalidStateError.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from pathlib import Path
from typing import Final

import anyio
import anyio.abc
import anyio.lowlevel

from ramet.system import sockets

_OPERATIONS_A_TURN: Final = 8
_MUCH_BYTES: Final = 8192


class SocketStream(anyio.abc.ByteStream):
    """A non-blocking, connected stream socket as anyio has them. It belongs to the stream.

    One task may receive and another send at the same time.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._waiting: set[asyncio.Future[None]] = set()
        self._since_turn = 0

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Receive at least one byte. Raises `EndOfStream`, `ClosedResourceError`, `BrokenResourceError`."""
        return await self._receive(max_bytes)

    async def peek(self, max_bytes: int) -> bytes:
        """Receive bytes and leave them in the stream."""
        return await self._receive(max_bytes, socket.MSG_PEEK)

    async def _receive(self, max_bytes: int, flags: int = 0) -> bytes:
        await self._turn()
        while True:
            try:
                data = self._socket.recv(max_bytes, flags)
            except BlockingIOError:
                self._since_turn = 0
                await self._wait(for_reading=True)
                continue
            except OSError as error:
                raise self._failure() from error
            if not data:
                raise anyio.EndOfStream
            if len(data) >= _MUCH_BYTES:
                self._since_turn = -1  # it takes a while to work through: then it is the others' turn
            return data

    async def _turn(self) -> None:
        """Give a chance to be cancelled and, now and then, other tasks a turn.

        A turn of the loop costs more than most operations here, but a task that always finds something ready
        would never give one.
        """
        self._since_turn += 1
        if self._since_turn % _OPERATIONS_A_TURN:
            await anyio.lowlevel.checkpoint_if_cancelled()
        else:
            await anyio.lowlevel.checkpoint()

    async def send(self, item: bytes) -> None:
        """Send all of it. Raises as `receive`.

        After an error or a cancellation, how much has been sent is unknown.
        """
        await self._turn()
        left = memoryview(item)
        while left:
            try:
                left = left[self._socket.send(left) :]
            except BlockingIOError:
                await self._wait(for_reading=False)
            except OSError as error:
                raise self._failure() from error

    def peer_pid(self) -> int:
        """Return the process that listened, or connected, on the other side (SO_PEERCRED, unix(7))."""
        credentials = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid: int = struct.unpack("3i", credentials)[0]
        return pid

    async def send_eof(self) -> None:
        """Tell the other side that nothing more comes."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise self._failure() from error

    async def aclose(self) -> None:
        """Close the socket. Tasks that still wait for it get `ClosedResourceError`."""
        for future in self._waiting:
            if not future.done():
                future.set_exception(anyio.ClosedResourceError())
        if (descriptor := self._socket.fileno()) >= 0:
            loop = asyncio.get_running_loop()
            loop.remove_reader(descriptor)
            loop.remove_writer(descriptor)
            self._socket.close()
        await anyio.lowlevel.checkpoint()

    async def _wait(self, *, for_reading: bool) -> None:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        self._waiting.add(ready)
        add, remove = (
            (loop.add_reader, loop.remove_reader) if for_reading else (loop.add_writer, loop.remove_writer)
        )
        descriptor = self._socket.fileno()  # of a socket object the selector would make a text each time
        add(descriptor, _resolve, ready)
        try:
            await ready
        finally:
            self._waiting.discard(ready)
            if self._socket.fileno() >= 0:
                remove(descriptor)

    def _failure(self) -> Exception:
        return anyio.ClosedResourceError() if self._socket.fileno() < 0 else anyio.BrokenResourceError()


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def connect_stream(directory: Path, name: str) -> SocketStream:
    """Open a stream to the UNIX socket `name` in `directory`. Raises as `sockets.connect`."""
    return SocketStream(sockets.connect(directory, name))
