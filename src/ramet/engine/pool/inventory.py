"""The warm VMMs of one controller: which of them wait, and which are one too many."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from ramet.engine.pool import directory as pool_directory
from ramet.engine.pool.prewarm import Made

EMPTY: Final = ""
"""The source of an empty VMM."""


class Inventory:
    """The living VMMs that a controller has made, wherever they are by now."""

    def __init__(self) -> None:
        self._alive: dict[str, Made] = {}
        self._waiting: dict[str, Made] = {}
        self._dead: set[str] = set()

    def add(self, made: Made) -> None:
        """Add a VMM that waits."""
        self._waiting[made.id] = self._alive[made.id] = made

    def remove(self, made: Made) -> None:
        """Remove a VMM that is to be ended."""
        del self._waiting[made.id]
        self._dead.discard(made.id)

    def has_ended(self, made: Made) -> bool:
        """Note the end of a VMM's process. Returns whether that was while it waited."""
        self._alive.pop(made.id, None)
        if made.id in self._waiting:
            self._dead.add(made.id)
        return made.id in self._waiting

    def count(self, names: Iterable[str]) -> bool:
        """Check them against the names in the pool's directory; whether some were taken since.

        One may have been put back, too.
        """
        there = {entry.id for entry in pool_directory.entries(names) if entry.state == "ready"}
        taken = self._waiting.keys() - there
        for gone in taken:
            del self._waiting[gone]
            self._dead.discard(gone)
        for back in (self._alive.keys() & there) - self._waiting.keys():
            self._waiting[back] = self._alive[back]
        return bool(taken)

    def waiting(self) -> list[Made]:
        """List all VMMs that can be claimed."""
        return list(self._waiting.values())

    def have(self) -> dict[str, int]:
        """Count the waiting VMMs by source."""
        have: dict[str, int] = {}
        for made in self._waiting.values():
            have[made.source or EMPTY] = have.get(made.source or EMPTY, 0) + 1
        return have

    def surplus(self, shares: Mapping[str, int], keys: Mapping[str, str]) -> list[Made]:
        """List the VMMs to end: dead, stale (another key in `keys`), or above the source's share."""
        kept = dict.fromkeys(shares, 0)
        surplus = []
        for made in self._waiting.values():
            source = made.source or EMPTY
            stale = source != EMPTY and keys.get(source) != made.key
            if made.id in self._dead or stale or kept.get(source, 0) >= shares.get(source, 0):
                surplus.append(made)
            else:
                kept[source] += 1
        return surplus
