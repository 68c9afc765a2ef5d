"""Calls into an open Host: from where they may come, and their end when the Host is left.

Each public coroutine of the Host and of its handles is a call (`calls_into_host`). Leaving the Host ends the
calls of other tasks with `UsageError`, so that no task waits for something that only an open Host can give.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final, Protocol, TypeVar

import anyio

from ramet.errors import UsageError

_LEAVE_LIMIT_S: Final = 30.0
"""A call that doesn't end within this time is abandoned: its task continues without a Host."""

_K = TypeVar("_K")


class Admission(Protocol):
    """Admits calls: `Calls`, or `UNBOUND`."""

    def call(self) -> AbstractContextManager[None]:
        """Return a context in which the whole call is made."""


class _MakesCalls(Protocol):
    @property
    def _calls(self) -> Admission: ...


class _Unbound:
    def call(self) -> AbstractContextManager[None]:
        return nullcontext()


UNBOUND: Final[Admission] = _Unbound()
"""For handles that belong to no Host."""


class Calls:
    """The calls that are under way in one open Host, of one event loop in one process."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        self._under_way: dict[anyio.CancelScope, asyncio.Task[Any] | None] = {}
        self._ended = asyncio.Event()
        self._open: list[Callable[[], Awaitable[None]]] = []
        self._was_left = False

    def require_open(self) -> None:
        """Raise `UsageError` when the Host was closed, or belongs to the parent of this forked process."""
        if os.getpid() != self._pid:
            raise was_forked()
        if self._was_left:
            raise was_left()

    def may_leave(self, kind: type[BaseException] | None) -> bool:
        """Check as `require_open` for the end of a block; return False instead if `kind` is being raised.

        That exception says more than the error would.
        """
        try:
            self.require_open()
        except UsageError:
            if kind is None:
                raise
            return False
        return True

    def require_loop(self) -> None:
        """Raise `UsageError` in any other event loop than the Host's."""
        if _running_loop() is not self._loop:
            raise UsageError(
                "this Host was opened in another event loop",
                hint="use a Host in the event loop that opened it; open one Host for each loop",
            )

    @contextmanager
    def call(self) -> Iterator[None]:
        """End everything inside with `UsageError` when another task closes the Host.

        Raises `UsageError` as `require_open`, and in any other event loop than the Host's.
        """
        self.require_open()
        self.require_loop()
        with anyio.CancelScope() as scope:
            self._under_way[scope] = asyncio.current_task()
            try:
                yield
            except Exception as error:
                # What was cut off may fail in its own words; the reason is what the caller has to know.
                if scope.cancel_called and not isinstance(error, UsageError):
                    raise was_left() from error
                raise
            finally:
                del self._under_way[scope]
                self._ended.set()
        if scope.cancelled_caught:
            raise was_left()

    @property
    def loop_has_ended(self) -> bool:
        """True when this Host can't run any more: `asyncio.run` has ended without closing it."""
        return self._loop.is_closed()

    async def leave(self, leaving: asyncio.Task[Any] | None) -> None:
        """Admit no more calls, end those of all tasks but `leaving`, and wait until they have cleaned up.

        A context that the leaving task itself has open isn't cancelled, because that task is still inside:
        the context's command is ended (`ends_with_the_host`).
        """
        self._was_left = True
        if self.loop_has_ended:
            return
        with anyio.move_on_after(_LEAVE_LIMIT_S, shield=True):
            while others := [scope for scope, task in self._under_way.items() if task is not leaving]:
                for scope in others:
                    scope.cancel()
                self._ended.clear()
                await self._ended.wait()
        for end in list(self._open):
            await end()

    @contextmanager
    def ends_with_the_host(self, end: Callable[[], Awaitable[None]]) -> Iterator[None]:
        """Await `end`, which has its own time limit, when the Host is closed during the block."""
        self._open.append(end)
        try:
            yield
        finally:
            self._open.remove(end)


def was_left() -> UsageError:
    """Make the error of a call whose Host was closed."""
    return UsageError(
        "this Host was left", hint="open a Host and get the instance or snapshot from it again, by name or id"
    )


def was_forked() -> UsageError:
    """Make the error of a call in a child of the process that opened the Host."""
    return UsageError(
        "this Host was opened by the process that this one was forked from",
        hint="open a Host in each process",
    )


def require_asyncio() -> None:
    """Raise `UsageError` unless a task of an asyncio event loop runs this: trio's tasks don't."""
    if _running_loop() is None or asyncio.current_task() is None:
        raise UsageError(
            "ramet.Host needs an asyncio event loop (asyncio's or uvloop's), and this code isn't run by one",
            hint="run it by asyncio.run(), or use ramet.sync, from trio by trio.to_thread.run_sync()",
        )


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def calls_into_host(*, but: tuple[str, ...] = ()) -> Callable[[type[_K]], type[_K]]:
    """Make each public coroutine function and asynchronous generator of a class a call, `but` for some.

    A class decorator; the class has an attribute `_calls`. Functions that return at once (with an async
    context, or a `ForkCall`) make their calls themselves.
    """

    def decorate(kind: type[_K]) -> type[_K]:
        for name, member in list(vars(kind).items()):
            if name.startswith("_") or name in but:
                continue
            if inspect.iscoroutinefunction(member):
                setattr(kind, name, _coroutine(member))
            elif inspect.isasyncgenfunction(member):
                setattr(kind, name, _generator(member))
        return kind

    return decorate


def _coroutine(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def call(self: _MakesCalls, *arguments: Any, **options: Any) -> Any:
        with self._calls.call():
            return await function(self, *arguments, **options)

    return call


def _generator(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def calls(self: _MakesCalls, *arguments: Any, **options: Any) -> AsyncIterator[Any]:
        items = function(self, *arguments, **options)
        try:
            while True:
                # Only getting an item is a call; its consumer's work isn't.
                with self._calls.call():
                    try:
                        item = await anext(items)
                    except StopAsyncIteration:
                        return
                yield item
        finally:
            await items.aclose()

    return calls
