"""Blocking work in threads, also where no thread can be started.

Only this module asks for a worker thread; a test enforces that. A limit on processes counts threads too
(`pids.max`, `RLIMIT_NPROC`), and a process that has just met it is often about to clean up: that must work
with no thread to spare.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar, TypeVarTuple, Unpack

import anyio
import anyio.from_thread
import anyio.to_thread
from anyio.lowlevel import RunVar

from ramet.errors import LimitReachedError
from ramet.system.process_limit import why_none_starts

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_NO_THREAD: Final = "can't start new thread"
"""CPython's words for every failure of pthread_create(3), which has no error class."""


class _Work:
    """An event loop's present and future work in threads, of the kind that ends by itself."""

    def __init__(self) -> None:
        self.under_way = 0
        self.changed = anyio.Event()

    def tell(self) -> None:
        """Have waiting tasks try again."""
        self.changed.set()
        self.changed = anyio.Event()


_work: Final = RunVar[_Work]("ramet.system.threads")


async def run(
    function: Callable[[Unpack[Ts]], T],
    *arguments: *Ts,
    abandon_on_cancel: bool = False,
    waits_for_others: bool = False,
) -> T:
    """Return the result of `function`, called in a worker thread, as `anyio.to_thread.run_sync`.

    If no thread can be started, a thread that works already does it next; if there is none, it is done here,
    and the event loop is blocked meanwhile. With `waits_for_others` (a pipe's other end) that could last for
    ever: `LimitReachedError` is raised then, with the limit that was met, and `function` isn't called.
    """
    work = _of_this_loop()
    begun = False

    def begin() -> T:
        nonlocal begun
        begun = True
        return function(*arguments)

    if waits_for_others:
        try:
            return await anyio.to_thread.run_sync(begin, abandon_on_cancel=abandon_on_cancel)
        except RuntimeError as error:
            if begun or str(error) != _NO_THREAD:
                raise
            raise no_thread() from error
    while True:
        work.under_way += 1
        got_none = False
        try:
            return await anyio.to_thread.run_sync(begin, abandon_on_cancel=abandon_on_cancel)
        except RuntimeError as error:
            if begun or str(error) != _NO_THREAD:
                raise
            got_none = True
        finally:
            work.under_way -= 1
            # Who got none must not wake others that got none: they would keep each other awake.
            if not got_none or not work.under_way:
                work.tell()
        if not work.under_way:
            return function(*arguments)
        await work.changed.wait()


def check_cancelled() -> None:
    """Raise what anyio raises when the work in this thread has been cancelled.

    Work that is done without a thread can't have been cancelled meanwhile.
    """
    try:
        anyio.from_thread.check_cancelled()
    except RuntimeError:
        pass  # there is no worker thread


def _of_this_loop() -> _Work:
    try:
        return _work.get()
    except LookupError:
        work = _Work()
        _work.set(work)
        return work


def no_thread() -> LimitReachedError:
    """Make the error for a thread that couldn't be started."""
    why, cure = why_none_starts()
    return LimitReachedError(f"no thread can be started: {why}", hint=cure)
