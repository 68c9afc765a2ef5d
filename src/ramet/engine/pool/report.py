"""The report of a home's pool, for people and programs."""

from __future__ import annotations

from contextlib import suppress

import msgspec

from ramet.engine.context import Context
from ramet.engine.pool import directory as pool_directory
from ramet.errors import RametError
from ramet.memory.accounting import smaps_rollup
from ramet.model.schema import PoolController, PoolEntry, PoolReport
from ramet.paths import Home
from ramet.system import liveness


class ControllerFile(msgspec.Struct, frozen=True, kw_only=True):
    """A controller's file about itself, for `ramet pool`."""

    warm: int
    held_back: str | None


def pool_of(context: Context) -> PoolReport:
    """Describe the pool of a home, kept by any processes."""
    home = context.home
    names = pool_directory.names(home)
    kept = []
    for name, process in pool_directory.controllers(names).items():
        # It has just left, or is about to write it: it isn't listed.
        with suppress(OSError, msgspec.MsgspecError, RecursionError):
            file = msgspec.json.decode((home.pool / name).read_bytes(), type=ControllerFile)
            kept.append(
                PoolController(
                    pid=process.pid,
                    warm=file.warm,
                    held_back=file.held_back,
                    seen=liveness.why_unseen(process) is None,
                )
            )
    listed = [_described(home, entry) for entry in pool_directory.entries(names)]
    listed.sort(key=lambda entry: (entry.created_at or "~", entry.id))
    return PoolReport(controllers=kept, entries=listed)


def _described(home: Home, entry: pool_directory.Entry) -> PoolEntry:
    warm = pool_directory.read_warm(home.pool / entry.name)
    pss_bytes: int | None = None
    if warm is not None:
        with suppress(RametError):  # null is shown: it isn't known
            pss_bytes = smaps_rollup(liveness.local_pid(warm.process)).pss_bytes
    return PoolEntry(
        id=entry.id,
        driver=warm.driver if warm else None,
        warm=warm.state if warm else None,
        source=warm.source.partition("/")[2] if warm and warm.source else None,
        source_name=warm.source_name if warm else None,
        state=entry.state,
        pid=warm.process.pid if warm else None,
        pss_bytes=pss_bytes,
        created_at=warm.created_at if warm else None,
        controller=entry.holder.pid,
        seen=liveness.why_unseen(entry.holder) is None,
    )
