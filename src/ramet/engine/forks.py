"""The forks of one call, as a list and as a context."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

import anyio

from ramet.calls import Calls, calls_into_host
from ramet.engine.arguments import public
from ramet.engine.fork import ForkOutcome
from ramet.engine.results import ExecResult, ForkError
from ramet.errors import UsageError
from ramet.guest.client import DEFAULT_MAX_OUTPUT_BYTES
from ramet.guest.feeding import Readable, Word, read_all
from ramet.handles import Handle
from ramet.model.shapes import Receipt

if TYPE_CHECKING:
    from ramet.engine.vm import VM


@calls_into_host()
class Forks(Handle, list["VM"]):
    """Instances made by one `fork` call, in order.

    As a context it removes at its end those that weren't kept or detached.
    """

    def __init__(
        self, vms: Iterable[VM], remove: Callable[[Iterable[VM]], Awaitable[None]], calls: Calls
    ) -> None:
        super().__init__(vms)
        self._remove = remove
        self._calls = calls

    async def __aenter__(self) -> Forks:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._calls.may_leave(kind):
            await self._remove(self)

    @public
    async def exec(
        self,
        *argv: Word,
        stdin: bytes | str | Readable | None = None,
        env: Mapping[str, Word] | None = None,
        cwd: Word | None = None,
        user: str | int | None = None,
        timeout: float | None = None,
    ) -> list[ExecResult | Exception]:
        """Run the same program in all of them at once: a result, or the exception that took its place, for
        each in order.

        A `stdin` that is a file is read once, at most 64 MiB, and given to each. Errors of what is asked for
        itself are raised.
        """
        given = None if stdin is None else await read_all(stdin, most_bytes=DEFAULT_MAX_OUTPUT_BYTES)
        results: list[ExecResult | Exception | None] = [None] * len(self)

        async def one(index: int, vm: VM) -> None:
            if isinstance(vm, Exception):
                results[index] = vm  # asked for with return_exceptions: there is no such fork
                return
            try:
                results[index] = await vm.exec(
                    *argv, stdin=given, env=env, cwd=cwd, user=user, timeout=timeout
                )
            except Exception as error:
                results[index] = error

        async with anyio.create_task_group() as tasks:
            for index, vm in enumerate(self):
                tasks.start_soon(one, index, vm)
        return cast("list[ExecResult | Exception]", results)


class ForkCall(Handle):
    """A fork that has been asked for: awaiting it, or entering it as a context, makes it happen, once."""

    def __init__(
        self,
        make: Callable[[], Awaitable[ForkOutcome]],
        handle: Callable[[ForkOutcome, Receipt], VM],
        remove: Callable[[Iterable[VM]], Awaitable[None]],
        calls: Calls,
        *,
        return_exceptions: bool,
    ) -> None:
        self._make = make
        self._handle = handle
        self._remove = remove
        self._calls = calls
        self._return_exceptions = return_exceptions
        self._forks: Forks | None = None
        self._is_made = False

    def __await__(self) -> Generator[Any, None, Forks]:
        return self._run().__await__()

    async def __aenter__(self) -> Forks:
        self._forks = await self._run()
        return self._forks

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._forks is not None:
            await self._forks.__aexit__(kind, error, trace)

    async def _run(self) -> Forks:
        if self._is_made:
            raise UsageError("these forks have been made already", hint="call fork() again for others")
        self._is_made = True
        outcome = await self._make()
        living = [self._handle(outcome, fork) for fork in outcome.report.forks if isinstance(fork, Receipt)]
        if not self._return_exceptions:
            if outcome.errors:
                raise ForkError(living, outcome.errors)
            return Forks(living, self._remove, self._calls)
        in_order = [
            self._handle(outcome, fork) if isinstance(fork, Receipt) else outcome.errors[fork.name]
            for fork in outcome.report.forks
        ]
        # Asked for with return_exceptions, the list holds exceptions where forks failed, as asyncio.gather's
        # does.
        return Forks(cast("list[VM]", in_order), self._remove, self._calls)
