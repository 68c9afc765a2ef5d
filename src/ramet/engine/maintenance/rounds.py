"""Work on the pieces of a file by all CPUs, its results taken in order."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Final, TypeVar, cast

import anyio

from ramet.system import threads
from ramet.system.cgroups import usable_cpus

S = TypeVar("S")
T = TypeVar("T")

_MOST_AT_ONCE: Final = 16
"""With `_EACH` this bounds the pieces in memory: 96, with those that `take` has."""
_EACH: Final = 3


async def in_rounds(pieces: Sequence[S], work: Callable[[S], T], take: Callable[[list[T]], None]) -> None:
    """Work on the pieces, several at a time, and give the results to `take`, in order.

    Both functions run in threads; `take` has the results of one round while the next is worked on. Raises the
    first error of either, when nothing of both runs any more; so it does when it is cancelled.
    """
    at_once = min(usable_cpus(), _MOST_AT_ONCE)
    size = at_once * _EACH
    ready: list[T] = []
    for begin in range(0, len(pieces), size):
        batch = pieces[begin : begin + size]
        results: list[T | None] = [None] * len(batch)
        numbers = iter(range(len(batch)))
        workers = [partial(_work_off, numbers, batch, work, results) for _ in range(at_once)]
        await _together([partial(threads.run, take, ready), *workers] if ready else workers)
        ready = cast("list[T]", results)
    await threads.run(take, ready)


async def _work_off(
    numbers: Iterator[int], batch: Sequence[S], work: Callable[[S], T], results: list[T | None]
) -> None:
    for number in numbers:
        results[number] = await threads.run(work, batch[number])


async def _together(calls: Sequence[Callable[[], Awaitable[None]]]) -> None:
    errors: list[Exception] = []
    async with anyio.create_task_group() as tasks:

        async def guarded(call: Callable[[], Awaitable[None]]) -> None:
            try:
                await call()
            except Exception as error:
                errors.append(error)
                tasks.cancel_scope.cancel()

        for call in calls:
            tasks.start_soon(guarded, call)
    if errors:
        raise errors[0]
