"""How plain code drives the async classes. `generate_sync.py` pastes this into `ramet/sync.py`."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, contextmanager
from typing import Generic, TypeVar

import anyio
from anyio.from_thread import BlockingPortal, start_blocking_portal

from ramet.host import threads

_T = TypeVar("_T")


class _Task(Generic[_T]):
    """A coroutine in a portal's loop. `_finished` tells when it has cleaned up, which a future doesn't."""

    def __init__(self, portal: BlockingPortal, function: Callable[[], Awaitable[_T]]) -> None:
        self._function = function
        self._finished = threading.Event()
        self._future: Future[_T] = portal.start_task_soon(self._run)

    async def _run(self) -> _T:
        try:
            return await self._function()
        finally:
            self._finished.set()

    def result(self) -> _T:
        """Its result. If the wait is interrupted (Ctrl-C) it is cancelled and its cleanup is waited for."""
        try:
            return self._future.result()
        except BaseException:
            self.cancel()
            raise

    def cancel(self) -> None:
        """Cancel it and wait until it has cleaned up. Nothing happens when it is over."""
        if not self._future.done():
            self._future.cancel()
            self._finished.wait()


class _Portal:
    """An event loop in a thread of its own, one for each open Host. It works where a loop runs already."""

    def __init__(self) -> None:
        self._exits = ExitStack()
        try:
            self._portal = self._exits.enter_context(start_blocking_portal("asyncio", name="ramet"))
        except RuntimeError as error:
            raise threads.no_thread() from error  # it raises that for nothing else

    def close(self) -> None:
        """End the loop and its thread."""
        self._exits.close()

    def call(self, function: Callable[[], Awaitable[_T]]) -> _T:
        """Await `function()` in the loop."""
        return _Task(self._portal, function).result()

    @contextmanager
    def entered(self, make: Callable[[], AbstractAsyncContextManager[_T]]) -> Iterator[_T]:
        """An async context as a plain one. One task enters and leaves it, as cancel scopes want it."""
        ready: Future[_T] = Future()
        leave = self._portal.call(anyio.Event)

        async def hold() -> None:
            try:
                async with make() as value:
                    ready.set_result(value)
                    await leave.wait()
            except BaseException as error:
                if not ready.done():
                    ready.set_exception(error)
                    if isinstance(error, Exception):
                        return
                raise

        task = _Task(self._portal, hold)
        try:
            value = ready.result()
        except BaseException:
            task.cancel()
            raise
        try:
            yield value
        finally:
            self._portal.start_task_soon(leave.set)
            task.result()

    def iterate(self, make: Callable[[], AsyncIterator[_T]]) -> Iterator[_T]:
        """An async iterator as a plain one, driven by one task. Leaving the loop early ends it."""
        with self.entered(lambda: _pumped(make)) as following:
            while True:
                try:
                    item = self.call(following)
                except anyio.EndOfStream:
                    return
                yield item


@asynccontextmanager
async def _pumped(make: Callable[[], AsyncIterator[_T]]) -> AsyncIterator[Callable[[], Awaitable[_T]]]:
    """A function for the iterator's next item; it raises `EndOfStream`, or the iterator's own error."""
    send, receive = anyio.create_memory_object_stream[_T](0)
    failed: list[Exception] = []

    async def pump() -> None:
        items = make()
        try:
            async for item in items:
                await send.send(item)
        except Exception as error:
            failed.append(error)
        finally:
            send.close()
            if (close := getattr(items, "aclose", None)) is not None:
                with anyio.CancelScope(shield=True):
                    await close()

    async def following() -> _T:
        try:
            return await receive.receive()
        except anyio.EndOfStream:
            if failed:
                raise failed[0] from None
            raise

    with receive:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pump)
            yield following
            tasks.cancel_scope.cancel()
