"""Between a client and an agent: connections that break where a test says.

What had been passed on by then has arrived; what hadn't is lost, in both directions, as when a VMM resets a
guest's connections.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.abc

from ramet.errors import GuestLostError
from ramet.system.streams import SocketStream, connect_stream

_ANY_NUMBER = 1 << 62


class Cutter:
    """Makes connections to the agent that listens on `agent`. The first carries any number of bytes until
    `cut`; each that follows carries as many as the next of `budgets` says, both directions taken together.
    """

    def __init__(self, agent: Path, budgets: Iterator[int]) -> None:
        self.made = 0
        self.deaf = False
        """The client isn't told of the end: it learns of it when it sends something."""
        self.lost = 0
        """So often it sends something that is lost with the connection before: it had been passed on."""
        self._agent = agent
        self._budgets = budgets
        self._left = _ANY_NUMBER
        self._present: anyio.CancelScope | None = None

    def cut(self, after_bytes: int = 0) -> None:
        """Breaks the present connection when it has carried so many more."""
        self._left = after_bytes
        if after_bytes == 0 and self._present is not None:
            self._present.cancel()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[anyio.abc.ByteStream]:
        """A client's stream. Raises `GuestLostError` when no agent listens."""
        try:
            guest = connect_stream(self._agent.parent, self._agent.name)
        except OSError as error:
            raise GuestLostError("no agent listens") from error
        self._left = _ANY_NUMBER if self.made == 0 else next(self._budgets, _ANY_NUMBER)
        self.made += 1
        near, far = socket.socketpair()
        near.setblocking(False)
        far.setblocking(False)
        client, middle = SocketStream(near), SocketStream(far)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._join, middle, guest)
            try:
                yield client
            finally:
                with anyio.CancelScope(shield=True):
                    await client.aclose()
                tasks.cancel_scope.cancel()

    async def _join(self, middle: anyio.abc.ByteStream, guest: anyio.abc.ByteStream) -> None:
        try:
            with anyio.CancelScope() as self._present:
                async with anyio.create_task_group() as directions:
                    directions.start_soon(self._carry, middle, guest, directions.cancel_scope)
                    directions.start_soon(self._carry, guest, middle, directions.cancel_scope)
            with anyio.CancelScope(shield=True):
                await guest.aclose()
            if self.deaf:
                for _ in range(1 + self.lost):
                    await middle.receive()
        finally:
            with anyio.CancelScope(shield=True):
                await guest.aclose()
                await middle.aclose()

    async def _carry(
        self, source: anyio.abc.ByteStream, target: anyio.abc.ByteStream, end: anyio.CancelScope
    ) -> None:
        try:
            while self._left > 0:
                data = (await source.receive())[: self._left]
                self._left -= len(data)
                await target.send(data)
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass
        end.cancel()
