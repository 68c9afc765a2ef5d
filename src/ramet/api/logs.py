"""Logs of an instance: the part of its handle that reads its console and its VMM's log."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Final

from ramet.api.arguments import public
from ramet.calls import calls_into_host
from ramet.engine.context import Context
from ramet.engine.lifecycle.watch import wait
from ramet.model.record import Record
from ramet.paths import CONSOLE_LOG, VMM_LOG
from ramet.system.bounded_log import tail, trim
from ramet.system.files import filesystem_errors
from ramet.system.follow import follow
from ramet.units import MIB

_LOG_BYTES: Final = MIB


@calls_into_host()
class Logs:
    """Base of the handle of an instance. The handle has `_context` and `_record`."""

    _context: Context

    @property
    def _record(self) -> Record:
        raise NotImplementedError

    def _log(self, *, vmm: bool) -> Path:
        return self._context.directory(self._record) / (VMM_LOG if vmm else CONSOLE_LOG)

    @public
    async def logs(self, *, vmm: bool = False) -> bytes:
        """Return the end of the guest's console, or of the VMM's log.

        A guest can write any bytes: don't send them to a terminal unfiltered.
        """
        path = self._log(vmm=vmm)
        with filesystem_errors("read", path):
            trim(path)
            return tail(path, _LOG_BYTES)

    @public
    async def follow_logs(self, *, vmm: bool = False) -> AsyncIterator[bytes]:
        """Yield the end of the log as `logs` returns it, then each addition, until the instance stops."""

        async def end() -> None:
            await wait(self._context, self._record)

        async with aclosing(follow(self._log(vmm=vmm), until=end)) as chunks:
            async for chunk in chunks:
                yield chunk
