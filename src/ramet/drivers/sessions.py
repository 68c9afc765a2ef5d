"""Sessions: one lease of a VMM's control socket for several calls.

A capture makes about ten requests to its VMM while the guest is paused. Leasing the socket for each request
(lock, connection, negotiation) would cost more than all requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, Generic, TypeVar

from ramet.model.record import Machine
from ramet.units import MIB

T = TypeVar("T")

_SESSION_S: Final = 60.0
# A slow machine's pace, for what may be copied of the guest's RAM while it is paused.
_SLOWEST_MIB_PER_S: Final = 64


def session_limit_s(machine: Machine) -> float:
    """Return the longest time of a session with the VMM of that machine."""
    return _SESSION_S + machine.memory_bytes / (_SLOWEST_MIB_PER_S * MIB)


class Sessions(Generic[T]):
    """The sessions that tasks of this process have with a VMM.

    A session belongs to its task: other tasks wait for the socket as other processes do, so that their
    requests don't come between. The session must not wait for them.
    """

    def __init__(self, lease: Callable[[float | None], AbstractAsyncContextManager[T]]) -> None:
        self._lease = lease
        self._held: dict[asyncio.Task[Any] | None, T] = {}

    @asynccontextmanager
    async def open(self, limit_s: float) -> AsyncIterator[None]:
        """Keep one lease for all that this task says inside. Inside another session nothing happens."""
        task = asyncio.current_task()
        if task in self._held:
            yield
            return
        async with self._lease(limit_s) as leased:
            self._held[task] = leased
            try:
                yield
            finally:
                del self._held[task]

    @asynccontextmanager
    async def use(self) -> AsyncIterator[T]:
        """Yield this task's lease or, if it has no session, a short lease."""
        held = self._held.get(asyncio.current_task())
        if held is not None:
            yield held
            return
        async with self._lease(None) as leased:
            yield leased
