"""Forks of an instance or a snapshot: the part that both handles share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic

from ramet.api.arguments import public
from ramet.calls import Calls, calls_into_host
from ramet.engine.context import Context
from ramet.engine.fork.call import ForkOutcome
from ramet.engine.lifecycle import removal
from ramet.engine.lifecycle.watch import watch
from ramet.engine.restore.parts import ForkOptions
from ramet.guest.feeding import read_all
from ramet.handles import Handle
from ramet.model.forks import ForkCall, V
from ramet.model.record import Record
from ramet.model.schema import ForkReport, Receipt


@calls_into_host()
class Forkable(Handle, Generic[V]):
    """Base of the handles that can be forked. `V` is the handle of a fork; the subclass makes it."""

    _context: Context

    @property
    def _calls(self) -> Calls:
        return self._context.calls

    async def _forked(
        self, count: int, name: str | None, options: ForkOptions, *, detach: bool
    ) -> ForkOutcome:
        """Make the forks."""
        raise NotImplementedError

    def _handle(self, record: Record, receipt: Receipt) -> V:
        """Make the handle of a fork."""
        raise NotImplementedError

    @public
    def fork(
        self,
        count: int = 1,
        *,
        name: str | None = None,
        require_shared: bool = False,
        share_memory: bool = True,
        return_exceptions: bool = False,
        detach: bool = False,
    ) -> ForkCall[V]:
        """Fork `count` times: `await` the call for a list, or use it with `async with`.

        The block of `async with` removes the forks at its end.

        A snapshot, a template and an instance in standby are forked as they are. A running instance is
        captured first, which pauses it for milliseconds, and for longer if it was booted and not restored
        since. If some forks fail, `ForkError` has the living forks and the errors of the others; with
        `return_exceptions`, both are returned in order. With `detach`, all forks stay after the Host is
        closed, as after `VM.detach`. They are recorded and detached in one step: a process that is killed
        before that step leaves no fork.
        """
        options = ForkOptions(require_shared=require_shared, share_memory=share_memory)

        async def make() -> dict[str, V | Exception]:
            with self._calls.call():
                outcome = await self._forked(count, name, options, detach=detach)
                self._adopt(outcome, detach=detach)
            return {
                fork.name: self._handle(outcome.records[fork.id], fork)
                if isinstance(fork, Receipt)
                else outcome.errors[fork.name]
                for fork in outcome.report.forks
            }

        return ForkCall(make, self._remove, self._calls, read_all, return_exceptions=return_exceptions)

    @public
    async def fork_report(
        self,
        count: int = 1,
        *,
        name: str | None = None,
        require_shared: bool = False,
        share_memory: bool = True,
        detach: bool = False,
    ) -> ForkReport:
        """Fork as `fork` does, but return a report: a receipt or a failure per fork, in order.

        A fork that fails raises nothing.
        """
        options = ForkOptions(require_shared=require_shared, share_memory=share_memory)
        outcome = await self._forked(count, name, options, detach=detach)
        self._adopt(outcome, detach=detach)
        return outcome.report

    def _adopt(self, outcome: ForkOutcome, *, detach: bool) -> None:
        """Watch the forks while this Host is open. Closing the Host removes them unless they are detached."""
        for fork in outcome.report.forks:
            if isinstance(fork, Receipt):
                if not detach:
                    self._context.ours.add(fork.id)
                watch(self._context, outcome.records[fork.id])

    async def _remove(self, forks: Iterable[V]) -> None:
        """Remove those of `forks` that still belong to this Host."""
        context = self._context
        with context.calls.call():
            ours = {fork.id for fork in forks if not isinstance(fork, Exception)} & context.ours
            await removal.destroy_all(context, [row for row in context.store.all() if row.id in ours])
