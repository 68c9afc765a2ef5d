"""Steps that have to be done to the end once they are begun, whatever becomes of whoever waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import anyio

T = TypeVar("T")


async def finish(work: Coroutine[Any, Any, T]) -> T:
    """Await `work`, in a task of its own that nobody cancels. A cancellation is raised when it is done; what
    it raised itself is lost then.

    anyio's shield keeps anyio's own cancellations away, and not asyncio's: `asyncio.wait_for`, or a task
    group of asyncio's.
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
        task.exception()  # it is looked at, so that asyncio doesn't complain
        raise cancelled
    return task.result()
