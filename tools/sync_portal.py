"""The portal by which plain code drives the async classes. `generate_sync.py` pastes it into `sync.py`."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import AbstractAsyncContextManager, AbstractContextManager, suppress
from types import TracebackType
from typing import Any, Final, Generic, TypeVar, cast

import anyio

from ramet.calls import was_forked, was_left
from ramet.errors import RametError, UsageError
from ramet.system import threads

_T = TypeVar("_T")
_W = TypeVar("_W")

_JOIN_LIMIT_S: Final = 10.0
"""The thread is left to itself when a call keeps it longer: it is a daemon."""


class _Task(Generic[_T]):
    """A coroutine in a portal's loop. Its future is done when it has cleaned up."""

    def __init__(
        self,
        portal: _Portal,
        function: Callable[[], Awaitable[_T]],
        undo: Callable[[_T], Awaitable[None]] | None = None,
    ) -> None:
        self.future: Future[_T] = Future()
        self._portal = portal
        self._function = function
        self._undo = undo
        self._scope: anyio.CancelScope | None = None
        self._is_unwanted = False

    async def run(self) -> None:
        """Run the coroutine in the loop, from beginning to end."""
        try:
            with anyio.CancelScope() as scope:
                self._scope = scope
                if self._is_unwanted:
                    scope.cancel()
                result = await self._function()
            if scope.cancelled_caught:
                raise was_left()
        except asyncio.CancelledError:
            self.future.set_exception(was_left())
            raise
        except BaseException as error:
            # Any error is for the caller: the loop is for everybody.
            self.future.set_exception(error)
        else:
            self.future.set_result(result)
        finally:
            self._portal.forget(self)

    def result(self) -> _T:
        """Wait for the result, and return it.

        If the wait is interrupted (Ctrl-C), the coroutine is cancelled and its cleanup is waited for; things
        that it had made by then, which nobody gets, are removed.
        """
        try:
            wait([self.future])
        except BaseException:
            self.cancel()
            if self._undo is not None and self.future.exception() is None:
                made, undo = self.future.result(), self._undo
                with suppress(RametError):  # the Host has it still, and removes it when it is left
                    self._portal.call(lambda: undo(made))
            raise
        return self.future.result()

    def cancel(self) -> None:
        """Cancel the coroutine and wait for its cleanup. Does nothing when it is over."""
        if not self.future.done():
            self._portal.soon(self.unwant)
            wait([self.future])

    def unwant(self) -> None:
        """Cancel the coroutine, in the loop."""
        self._is_unwanted = True
        if self._scope is not None:
            self._scope.cancel()


class _Portal:
    """An event loop in a separate thread, one for each open Host. It works where a loop runs already.

    A call that is under way when the loop ends, and each later one, raises `UsageError`. So does each call in
    a child of this process: the thread isn't there. Destructors never wait for the loop.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.RLock()  # a signal handler may interrupt its own thread here
        self._tasks: set[_Task[Any]] = set()
        self._closed = False
        self._running: set[asyncio.Future[None]] = set()
        # Held until they are closed: a generator that another thread's collection finalizes is closed by the
        # loop while the loop's end closes it, too.
        self._open: dict[int, AsyncIterator[Any]] = {}
        self._stop: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._started: Future[None] = Future()
        # A daemon: a Host that is still open doesn't keep the interpreter from ending. Threads that the loop
        # starts inherit that. Its context is empty: the caller's may belong to a loop.
        self._thread = threading.Thread(
            target=contextvars.Context().run, args=(self._run,), name="ramet", daemon=True
        )
        try:
            self._thread.start()
        except RuntimeError as error:
            raise threads.no_thread() from error  # it raises that for nothing else
        try:
            self._started.result()
        except BaseException:  # Ctrl-C, perhaps
            self._closed = True
            self._end()
            raise

    def require(self) -> None:
        """Raise `UsageError` in a child of the process that made this."""
        if os.getpid() != self._pid:
            raise was_forked()

    def may_leave(self, kind: type[BaseException] | None) -> bool:
        """Check as `require` for the end of a block; return False instead if `kind` is being raised.

        That exception says more than the error would.
        """
        try:
            self.require()
            if self._closed:
                raise was_left()
        except UsageError:
            if kind is None:
                raise
            return False
        return True

    def close(self) -> None:
        """End the loop and its thread, and what is still under way there."""
        self.require()
        self._end()
        if threading.get_ident() != self._thread.ident:
            self._thread.join(_JOIN_LIMIT_S)

    def call(
        self, function: Callable[[], Awaitable[_T]], undo: Callable[[_T], Awaitable[None]] | None = None
    ) -> _T:
        """Await `function()` in the loop.

        `undo` gets a result that comes too late for an interrupted caller.
        """
        return self.start(function, undo).result()

    def start(
        self, function: Callable[[], Awaitable[_T]], undo: Callable[[_T], Awaitable[None]] | None = None
    ) -> _Task[_T]:
        """Begin to await `function()` in the loop."""
        self.require()
        if threading.get_ident() == self._thread.ident:
            raise UsageError("a call from ramet's own thread would wait for itself")
        task = _Task(self, function, undo)
        with self._lock:
            if self._closed:
                raise was_left()
            self._tasks.add(task)
        self.soon(self._begin, task)
        return task

    def soon(self, function: Callable[..., object], *arguments: object) -> None:
        """Call `function` in the loop, and don't wait for that. Nothing happens when the loop has ended."""
        if os.getpid() == self._pid and self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(function, *arguments)

    def entered(
        self, make: Callable[[], AbstractAsyncContextManager[_W]], wrap: Callable[[_W], _T]
    ) -> AbstractContextManager[_T]:
        """Return an async context as a plain one, whose value is `wrap`ped."""
        return _Entered(self, make, wrap)

    def iterate(self, make: Callable[[], AsyncIterator[_T]]) -> Iterator[_T]:
        """Return an async iterator as a plain one."""
        return _Items(self, make)

    def hold(self, items: AsyncIterator[Any]) -> None:
        """Keep an async iterator until it is `shut` or `dropped`. In the loop."""
        self._open[id(items)] = items

    def drop(self, items: AsyncIterator[Any]) -> None:
        """Forget an async iterator that is over. In the loop."""
        self._open.pop(id(items), None)

    async def shut(self, items: AsyncIterator[Any]) -> None:
        """Close an async iterator, once. In the loop."""
        known = self._open.pop(id(items), None)
        if known is not None and (close := getattr(items, "aclose", None)) is not None:
            await cast("Awaitable[None]", close())

    def shut_soon(self, items: AsyncIterator[Any]) -> None:
        """Close an async iterator that nobody waits for. In the loop, which doesn't end before."""
        closing = asyncio.ensure_future(self.shut(items))
        self._running.add(closing)
        closing.add_done_callback(self._running.discard)

    def _end(self) -> None:
        if self._stop is not None:
            self.soon(self._stop.set)

    def forget(self, task: _Task[Any]) -> None:
        """Forget a task that is over."""
        with self._lock:
            self._tasks.discard(task)

    def _begin(self, task: _Task[Any]) -> None:
        running = asyncio.ensure_future(task.run())
        self._running.add(running)
        running.add_done_callback(self._running.discard)

    def _run(self) -> None:
        try:
            anyio.run(self._serve)
        except BaseException as error:
            if not self._started.done():
                self._started.set_exception(error)
        finally:
            with self._lock:
                self._closed = True
                left = list(self._tasks)
            for task in left:
                if not task.future.done():
                    task.future.set_exception(was_left())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._started.set_result(None)
        if not self._closed:
            await self._stop.wait()
        with self._lock:
            self._closed = True
            left = list(self._tasks)
        for task in left:
            task.unwant()
        if self._running:
            await asyncio.wait(self._running, timeout=_JOIN_LIMIT_S)
        for items in list(self._open.values()):
            with suppress(RuntimeError):  # a task that didn't end in time is in it
                await self.shut(items)


class _Held(Generic[_W]):
    """An async context, entered and left by one task, as cancel scopes want it."""

    def __init__(self, make: Callable[[], AbstractAsyncContextManager[_W]]) -> None:
        self._make = make
        self.ready: Future[_W] = Future()
        self.leave: asyncio.Event | None = None

    async def hold(self) -> None:
        """Enter the context, give its value to `ready`, and leave it on request."""
        self.leave = asyncio.Event()
        async with self._make() as value:
            self.ready.set_result(value)
            await self.leave.wait()


class _Entered(AbstractContextManager[_T], Generic[_W, _T]):
    """An async context as a plain one. One that is forgotten is left in the background."""

    def __init__(
        self,
        portal: _Portal,
        make: Callable[[], AbstractAsyncContextManager[_W]],
        wrap: Callable[[_W], _T],
    ) -> None:
        self._portal = portal
        self._held = _Held(make)
        self._wrap = wrap
        self._task: _Task[None] | None = None

    def __enter__(self) -> _T:
        if self._task is not None:
            raise UsageError("this context was entered already", hint="make another one")
        task = self._task = self._portal.start(self._held.hold)
        try:
            waited: list[Future[Any]] = [task.future, self._held.ready]
            wait(waited, return_when="FIRST_COMPLETED")
        except BaseException:
            task.cancel()
            raise
        if not self._held.ready.done():
            task.result()
        return self._wrap(self._held.ready.result())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._portal.may_leave(kind):
            return
        task = self._task
        if task is None:
            raise UsageError("this context isn't entered")
        if self._held.leave is not None:
            self._portal.soon(self._held.leave.set)
        task.result()

    def __del__(self) -> None:
        if self._task is not None and self._held.leave is not None:
            self._portal.soon(self._held.leave.set)


class _Items(Iterator[_T]):
    """An async iterator as a plain one, for one thread at a time.

    Nothing of it runs between two items.
    """

    def __init__(self, portal: _Portal, make: Callable[[], AsyncIterator[_T]]) -> None:
        self._portal = portal
        self._make = make
        self._items: AsyncIterator[_T] | None = None
        self._ended = False
        self._asking = threading.Lock()
        self._task: _Task[_T] | None = None

    def __next__(self) -> _T:
        self._portal.require()
        with self._asking:
            if self._ended:
                raise StopIteration
            task = self._task = self._portal.start(self._next)
            try:
                return task.result()
            except StopAsyncIteration:
                self._ended = True
                raise StopIteration from None
            except BaseException:
                was_closed, self._ended = self._ended, True
                if was_closed:
                    raise StopIteration from None
                raise

    def close(self) -> None:
        """End the iterator. A thread that waits for its next item gets `StopIteration`."""
        self._portal.require()
        self._ended = True
        if self._task is not None:
            self._task.cancel()
        if (items := self._items) is not None:
            with suppress(UsageError):  # its Host was left, and it ended with that
                self._portal.call(lambda: self._portal.shut(items))

    async def _next(self) -> _T:
        if self._items is None:
            self._items = self._make()
            self._portal.hold(self._items)
        try:
            # A future can't hold StopIteration, but it can hold StopAsyncIteration.
            return await anext(self._items)
        except BaseException:  # which an iterator doesn't outlive
            self._portal.drop(self._items)
            raise

    def __del__(self) -> None:
        if self._items is not None and not self._ended:
            self._portal.soon(self._portal.shut_soon, self._items)
