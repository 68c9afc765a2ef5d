"""Transfers of several blobs at once, with one progress."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Final, TypeVar

import anyio

from ramet import progress

T = TypeVar("T")
PARALLEL: Final = 4
"""Blobs on their way at once, as many as browsers and Docker have."""


async def each(items: Iterable[T], work: Callable[[T], Awaitable[None]]) -> None:
    """Await `work` for each item, four at a time. The first error ends the others and is raised."""
    failure: list[Exception] = []
    places = anyio.Semaphore(PARALLEL)

    async def do(item: T) -> None:
        try:
            async with places:
                await work(item)
        except Exception as error:
            failure.append(error)
            tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        for item in items:
            tasks.start_soon(do, item)
    if failure:
        raise failure[0]


class Tally:
    """The bytes of all blobs of one transfer, reported as one stage."""

    def __init__(self, stage: str, total: int) -> None:
        self._stage = stage
        self.total = total
        self._done = 0

    def count(self, more: int) -> None:
        """Note that `more` bytes are done, or with a negative number, that they weren't."""
        self._done += more
        progress.report(self._stage, self._done, self.total)
