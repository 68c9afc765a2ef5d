"""The background tasks of an open Host."""

from __future__ import annotations

import asyncio

import anyio
import anyio.abc


class Background:
    """A task group in a separate task.

    So a Host may be left by another task than the task that entered it (fixtures of test frameworks, cells of
    a notebook), and in any order with other contexts of that task. A cancelled caller's background tasks last
    until it leaves the Host.
    """

    def __init__(self) -> None:
        self._over = asyncio.Event()
        self._holding: asyncio.Task[None] | None = None

    async def start(self) -> anyio.abc.TaskGroup:
        """Start the task group, and return it ready for use."""
        ready: asyncio.Future[anyio.abc.TaskGroup] = asyncio.get_running_loop().create_future()
        self._holding = asyncio.create_task(self._hold(ready), name="ramet Host")
        return await ready

    async def close(self) -> None:
        """Cancel the tasks and wait for them. Raises the error that one of them has failed with."""
        holding = self._holding
        if holding is None:
            return
        self._over.set()
        if not holding.done():
            with anyio.CancelScope(shield=True):
                await asyncio.wait({holding})
        if not holding.cancelled() and (error := holding.exception()) is not None:
            raise error

    async def _hold(self, ready: asyncio.Future[anyio.abc.TaskGroup]) -> None:
        async with anyio.create_task_group() as tasks:
            if not ready.done():
                ready.set_result(tasks)
            await self._over.wait()
            tasks.cancel_scope.cancel()
