"""The forks of one call, as a list and as a context: for handles of any kind."""

from __future__ import annotations

import pickle
from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar, cast

import anyio
import msgspec

from ramet.arguments import COMMAND_CHECKS, checked
from ramet.calls import Calls, calls_into_host
from ramet.errors import PartlyFailedError, RametError, UsageError
from ramet.handles import Handle
from ramet.model.command import Readable, Source, Word
from ramet.model.exec_result import DEFAULT_MAX_OUTPUT_BYTES, ExecResult
from ramet.surface import exported


class Named(Protocol):
    """A handle of an instance."""

    @property
    def id(self) -> str: ...

    @property
    def name(self) -> str: ...


class RunsCommands(Named, Protocol):
    """A handle of an instance that commands run in."""

    async def exec(
        self,
        *argv: Word,
        stdin: bytes | str | Readable | None = None,
        env: Mapping[str, Word] | None = None,
        cwd: Word | None = None,
        user: str | int | None = None,
        timeout: float | None = None,
    ) -> ExecResult: ...


N_co = TypeVar("N_co", bound=Named, covariant=True)
V = TypeVar("V", bound=RunsCommands)
Remove = Callable[[Iterable[V]], Awaitable[None]]
ReadStdin = Callable[[Source, int], Awaitable[bytes]]
"""Reads all of a source, up to a number of bytes; raises `UsageError` for more."""


@exported
class InstanceName(msgspec.Struct, frozen=True, kw_only=True):
    """The id and name of an instance, in place of its handle in another process: `Host.get` takes either."""

    id: str
    name: str


@exported
class ForkError(PartlyFailedError, Generic[N_co]):
    """Some forks of a call failed.

    `forks` are the living forks; `errors` are the errors of the others, by name. In a pickle, `forks` become
    ids and names (`InstanceName`), because handles stay with their Host. `Host.get` returns new handles.
    """

    def __init__(self, forks: Sequence[N_co], errors: dict[str, Exception]) -> None:
        names = ", ".join(errors)
        first = next(iter(errors.values()))
        super().__init__(f"{len(errors)} of {len(errors) + len(forks)} forks failed ({names}): {first}")
        self.forks = list(forks)
        self.errors = errors

    def _carried(self) -> dict[str, object]:
        return {
            **super()._carried(),
            "forks": [InstanceName(id=fork.id, name=fork.name) for fork in self.forks],
            "errors": {name: _portable(error) for name, error in self.errors.items()},
        }


def _portable(error: Exception) -> Exception:
    """Return an error that can be pickled: `error`, or a `RametError` with its words."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # another package's class: its words are kept, with the name of its type
        return RametError(f"{type(error).__name__}: {error}")
    return error


@exported
@calls_into_host()
class Forks(Handle, list[V]):
    """The instances that a `fork` call made, in order.

    As a context, it removes the instances at its end, except those that were kept or detached.

    Run a command in all forks at once, and keep one fork:

        vm = await host.get("agent")
        async with vm.fork(3, name="idea") as forks:
            results = await forks.exec("hostname")  # an exception in place of a fork that died
            names = [result.text.strip() for result in results if isinstance(result, ramet.ExecResult)]
            print(names)  # ['idea-1', 'idea-2', 'idea-3']
            await forks[1].keep()
        print([instance.name for instance in await host.list()])  # ['agent', 'idea-2']
    """

    def __init__(self, vms: Iterable[V], remove: Remove[V], calls: Calls, read_stdin: ReadStdin) -> None:
        super().__init__(vms)
        self._remove = remove
        self._calls = calls
        self._read_stdin = read_stdin

    async def __aenter__(self) -> Forks[V]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._calls.may_leave(kind):
            await self._remove(self)

    @checked(COMMAND_CHECKS)
    async def exec(
        self,
        *argv: Word,
        stdin: bytes | str | Readable | None = None,
        env: Mapping[str, Word] | None = None,
        cwd: Word | None = None,
        user: str | int | None = None,
        timeout: float | None = None,
    ) -> list[ExecResult | Exception]:
        """Run a program in all instances at once; return a result or an exception per instance, in order.

        A `stdin` that is a file is read once, up to 64 MiB, and passed to each instance. Errors in the
        arguments are raised.
        """
        given = None if stdin is None else await self._read_stdin(stdin, DEFAULT_MAX_OUTPUT_BYTES)
        results: list[ExecResult | Exception | None] = [None] * len(self)

        async def run(index: int, vm: V | Exception) -> None:
            if isinstance(vm, Exception):
                results[index] = vm  # the fork failed, and the caller set return_exceptions
                return
            try:
                results[index] = await vm.exec(
                    *argv, stdin=given, env=env, cwd=cwd, user=user, timeout=timeout
                )
            except Exception as error:
                results[index] = error

        async with anyio.create_task_group() as tasks:
            for index, vm in enumerate(cast("list[V | Exception]", self)):
                tasks.start_soon(run, index, vm)
        return cast("list[ExecResult | Exception]", results)


@exported
class ForkCall(Handle, Generic[V]):
    """A call of `fork` that hasn't begun: `await` or `async with` runs it, once.

    `make` returns a handle or an error per fork, by name, in order.
    """

    def __init__(
        self,
        make: Callable[[], Awaitable[Mapping[str, V | Exception]]],
        remove: Remove[V],
        calls: Calls,
        read_stdin: ReadStdin,
        *,
        return_exceptions: bool,
    ) -> None:
        self._make = make
        self._remove = remove
        self._calls = calls
        self._read_stdin = read_stdin
        self._return_exceptions = return_exceptions
        self._forks: Forks[V] | None = None
        self._is_made = False

    def __await__(self) -> Generator[Any, None, Forks[V]]:
        return self._run().__await__()

    async def __aenter__(self) -> Forks[V]:
        self._forks = await self._run()
        return self._forks

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._forks is not None:
            await self._forks.__aexit__(kind, error, trace)

    async def _run(self) -> Forks[V]:
        if self._is_made:
            raise UsageError("these forks have been made already", hint="call fork() again for others")
        self._is_made = True
        made = await self._make()
        if not self._return_exceptions:
            errors = {name: fork for name, fork in made.items() if isinstance(fork, Exception)}
            living = [fork for fork in made.values() if not isinstance(fork, Exception)]
            if errors:
                raise ForkError(living, errors)
            return self._listed(living)
        # Asked for with return_exceptions, the list holds exceptions where forks failed, as asyncio.gather's
        # does.
        return self._listed(cast("Iterable[V]", made.values()))

    def _listed(self, forks: Iterable[V]) -> Forks[V]:
        return Forks(forks, self._remove, self._calls, self._read_stdin)
