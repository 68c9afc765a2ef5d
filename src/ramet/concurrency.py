"""Structured concurrency that anyio has no function for.

Work that outlives its caller's cancellation, work next to a block, work that may fail, and tries that are
repeated where nothing sets an event.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import anyio

from ramet.errors import RametError

T = TypeVar("T")


async def to_completion(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end even when the caller is cancelled, and return its result.

    A cancellation is raised after the end of `work`; an error of `work` is lost then. anyio's shield keeps
    anyio's own cancellations away, but not asyncio's (`asyncio.wait_for`, `asyncio.TaskGroup`), so `work` has
    a task that nobody cancels.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):
        while not task.done():
            try:
                await asyncio.wait({task})
            except asyncio.CancelledError as error:
                cancelled = error
    if cancelled is not None:
        task.exception()  # retrieved, so that asyncio doesn't complain
        raise cancelled
    return task.result()


async def best_effort(work: Awaitable[object]) -> None:
    """Await `work` and ignore `RametError` and `OSError`; the next ramet process tries again."""
    try:
        await work
    except (RametError, OSError):
        pass  # leftovers have a record, or a directory without a record: the next process finds both


@asynccontextmanager
async def alongside(
    work: Callable[[], Coroutine[Any, Any, None]], *, finish: bool = False
) -> AsyncIterator[anyio.CancelScope]:
    """Run `work` next to the block, and cancel it at the block's end; with `finish`, await it then.

    With `finish` it is cancelled only when the block fails. Unlike from a bare task group, the block's own
    error is raised and not an exception group. The yielded scope contains both: `work` may cancel the block,
    which then ends without an error.
    """
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work)
        try:
            yield tasks.cancel_scope
        except Exception as error:
            failure = error
        if failure is not None or not finish:
            tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure


def pauses_s(
    first_s: float, longest_s: float, *, within_s: float, late: Callable[[], Exception], growth: float = 2.0
) -> Iterator[float]:
    """Yield the pause before each further try, in seconds, and raise `late()` when the time is over.

    Pauses grow from `first_s` to `longest_s`, and none is longer than the rest of `within_s`. The first try
    comes before the first pause; a last one comes when the time is over.
    """
    deadline = time.monotonic() + within_s
    pause_s = first_s
    while (left_s := deadline - time.monotonic()) > 0:
        yield min(pause_s, left_s)
        pause_s = min(pause_s * growth, longest_s)
    raise late()
