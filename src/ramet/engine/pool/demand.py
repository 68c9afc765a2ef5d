"""The number of warm VMMs per source, by the forks that were requested lately. Pure.

Per source, the largest number of requests within a second is remembered for `half_life_s`, and halves with
each further half-life without more requests. If the budget doesn't hold all wishes, the latest source has the
first VMM, and the rest is shared out as seats are in a parliament (D'Hondt): the next one always goes to the
source that has the fewest for its demand.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Final

HALF_LIFE_S: Final = 300.0
_WINDOW_S: Final = 1.0


@dataclass
class _Source:
    peak: float = 0.0
    at_s: float = 0.0
    recent: deque[tuple[float, int]] = field(default_factory=deque)

    def level(self, now_s: float, half_life_s: float) -> float:
        return self.peak * math.exp2(min(0.0, 1.0 - (now_s - self.at_s) / half_life_s))


class Demand:
    """The demand per source, by any name that it has. Times are of one monotonic clock, in seconds."""

    def __init__(self, half_life_s: float = HALF_LIFE_S) -> None:
        self.half_life_s = half_life_s
        self._sources: dict[str, _Source] = {}

    def add(self, source: str, count: int, now_s: float) -> None:
        """Note that `count` forks of `source` have been requested."""
        known = self._sources.setdefault(source, _Source())
        known.recent.append((now_s, count))
        while known.recent[0][0] < now_s - _WINDOW_S:
            known.recent.popleft()
        known.peak = max(known.level(now_s, self.half_life_s), float(sum(count for _, count in known.recent)))
        known.at_s = now_s

    def forget(self, source: str) -> None:
        """Forget a source that is gone."""
        self._sources.pop(source, None)

    def wishes(self, now_s: float) -> dict[str, int]:
        """Return the ideal number per source, and forget sources without demand."""
        wanted = {}
        for name, source in list(self._sources.items()):
            if wish := math.floor(source.level(now_s, self.half_life_s) + 0.5):
                wanted[name] = wish
            else:
                del self._sources[name]
        return wanted

    def shares(self, budget: int, now_s: float) -> dict[str, int]:
        """Return the number to have per source, together at most `budget`."""
        wishes = self.wishes(now_s)
        given = dict.fromkeys(wishes, 0)
        latest = max(wishes, key=lambda name: self._sources[name].at_s, default=None)

        def claim(name: str) -> float:
            first = name == latest and not given[name]
            return math.inf if first else wishes[name] / (given[name] + 1)

        for _ in range(min(budget, sum(wishes.values()))):
            given[max((name for name in wishes if given[name] < wishes[name]), key=claim)] += 1
        return given

    def changes_in_s(self, now_s: float) -> float | None:
        """Return the seconds until a wish becomes smaller without new requests; None: there are no wishes."""
        soonest: float | None = None
        for name, wish in self.wishes(now_s).items():
            source = self._sources[name]
            at_s = source.at_s + self.half_life_s * (1.0 + math.log2(source.peak / (wish - 0.5)))
            soonest = at_s if soonest is None else min(soonest, at_s)
        return None if soonest is None else max(0.0, soonest - now_s)
