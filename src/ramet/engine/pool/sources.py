"""The captures that warm VMMs are made of: watched, with their keys, and put off where making one fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Set
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final, NamedTuple

from ramet.engine.context import Context
from ramet.engine.pool import directory as pool_directory
from ramet.engine.pool import prewarm
from ramet.engine.pool.demand import Demand
from ramet.errors import NotFoundError, RametError
from ramet.paths import MANIFEST_FILE
from ramet.system.listening import names_watched

_BACK_OFF_S: Final = (1.0, 60.0)


@dataclass
class _Trouble:
    """The reason that no VMM of a source can be made at present."""

    why: str
    pause_s: float
    until_s: float


class _Source(NamedTuple):
    """A capture at its last examination."""

    seen: tuple[int, int, int]
    base: str
    key: str
    driver: str
    version: str
    """The driver's."""


class Sources:
    """The sources of a controller. `news` is set when one of them changes; removed sources leave `demand`."""

    def __init__(self, context: Context, demand: Demand, news: asyncio.Event) -> None:
        self.sees_changes = True
        """False: some source can't be watched, so it has to be looked at from time to time."""
        self._context = context
        self._demand = demand
        self._news = news
        self._known: dict[str, _Source] = {}
        self._watches: dict[str, ExitStack] = {}
        self._troubles: dict[str, _Trouble] = {}

    def keys(self) -> dict[str, str]:
        """Return the present key of each source."""
        return {source: known.key for source, known in self._known.items()}

    def driver_of(self, source: str) -> str | None:
        """Return the name of a source's driver; None when the source isn't known."""
        known = self._known.get(source)
        return known.driver if known is not None else None

    async def look(self, wanted: Set[str]) -> None:
        """Look at each source in `wanted`, and forget all others."""
        for source in wanted:
            await self._look_at(source)
        for idle in self._known.keys() - wanted:
            del self._known[idle]
        for idle in self._watches.keys() - self._known.keys():
            self._watches.pop(idle).close()

    async def _look_at(self, source: str) -> None:
        """Find out whether a source is still the capture that it was."""
        directory = self._context.home.root / source
        if source not in self._watches:
            watch = self._watches[source] = ExitStack()
            if not watch.enter_context(names_watched(directory, self._news)) and directory.exists():
                self.sees_changes = False
        try:
            facts = (directory / MANIFEST_FILE).stat()
            known = self._known.get(source)
            memory = pool_directory.mem_inode(directory, known.base) if known is not None else 0
            seen = (facts.st_ino, facts.st_mtime_ns, memory)
            # A VMM of before an upgrade is no use to a fork of after it.
            version = await self._context.driver(known.driver).version() if known is not None else ""
            if known is None or (known.seen, known.version) != (seen, version):
                origin = prewarm.origin_at(self._context, source)
                driver = self._context.driver(origin.manifest.driver)
                version = await driver.version()
                base = origin.manifest.memory.base
                memory = pool_directory.mem_inode(directory, base)
                seen = (facts.st_ino, facts.st_mtime_ns, memory)
                key = pool_directory.key_of(directory, origin.manifest, version, memory)
                self._known[source] = _Source(seen, base, key, driver.name, version)
        except (OSError, NotFoundError):
            self._demand.forget(source)
            self._known.pop(source, None)
        except RametError as error:
            self._known.pop(source, None)
            self.put_off(source, error)

    def put_off(self, source: str, error: Exception) -> None:
        """Make none of a source for a while, each time for a longer one."""
        first_s, longest_s = _BACK_OFF_S
        before = self._troubles.get(source)
        pause_s = first_s if before is None else min(2 * before.pause_s, longest_s)
        self._troubles[source] = _Trouble(str(error), pause_s, time.monotonic() + pause_s)

    def succeeded(self, source: str) -> None:
        """Note that a VMM was made of a source."""
        self._troubles.pop(source, None)

    def why_put_off(self, source: str, now_s: float) -> str | None:
        """Tell why no VMM of a source is to be made now; None when one may be."""
        trouble = self._troubles.get(source)
        return trouble.why if trouble is not None and trouble.until_s > now_s else None

    def waits_s(self, now_s: float) -> list[float]:
        """Return the seconds for which each delayed source still is delayed."""
        return [trouble.until_s - now_s for trouble in self._troubles.values() if trouble.until_s > now_s]

    def close(self) -> None:
        """End all watches."""
        for watch in self._watches.values():
            watch.close()
