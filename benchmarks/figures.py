"""What was measured, and what can be said of it: medians, spread, and ratios with the noise of their own run.

A ratio is that of two medians. Its interval is a bootstrap's: the same statistic of a thousand samples that
are drawn, with replacement, from what was measured; the middle 95 of 100 of them are the interval (Efron and
Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13: the percentile interval). What was measured in
pairs is drawn in pairs, so what slows both down is in neither. The drawing is seeded: the same values give
the same interval.
"""

from __future__ import annotations

import random
import statistics
from typing import Final

import msgspec

SAMPLES: Final = 1000
CONFIDENCE: Final = 0.95


class Figure(msgspec.Struct, kw_only=True):
    """One thing measured again and again, every value kept."""

    what: str
    """As `fork to ready`."""
    who: str
    """Of what: a driver and who did it, as `qemu, ramet`."""
    x: float | None = None
    """On the axis of its benchmark, where there is one: forks, bytes of RAM, depth."""
    unit: str
    """`ms`, `s`, `bytes`, `1/s`, or nothing for a number."""
    values: list[float]

    @property
    def key(self) -> Key:
        return Key(self.what, self.who, self.x)

    @property
    def median(self) -> float:
        return statistics.median(self.values)


class Key(msgspec.Struct, frozen=True, array_like=True):
    """Which figure of its benchmark."""

    what: str
    who: str
    x: float | None = None


class Ratio(msgspec.Struct, kw_only=True):
    """The median of one figure over that of another, and where it lies with the confidence of this module."""

    name: str
    above: Key
    below: Key
    paired: bool
    """Whether both were measured in the same rounds: then they were drawn in pairs."""
    ratio: float
    low: float
    high: float
    n: int
    """Values of the one that has fewer."""


def percentile(values: list[float], share: float) -> float:
    """The smallest value that at least that share of them doesn't exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, -(-round(share * 1000) * len(ordered) // 1000) - 1)]


def compare(
    name: str, above: Figure, below: Figure, *, paired: bool = True, confidence: float = CONFIDENCE
) -> Ratio:
    """The ratio of the two. Of different numbers of values pairs can't be drawn."""
    paired = paired and len(above.values) == len(below.values)
    drawn = sorted(_drawn(above.values, below.values, paired=paired))
    outside = (1 - confidence) / 2
    return Ratio(
        name=name,
        above=above.key,
        below=below.key,
        paired=paired,
        ratio=above.median / below.median,
        low=percentile(drawn, outside),
        high=percentile(drawn, 1 - outside),
        n=min(len(above.values), len(below.values)),
    )


def _drawn(above: list[float], below: list[float], *, paired: bool) -> list[float]:
    draw = random.Random(0)
    ratios = []
    for _ in range(SAMPLES):
        if paired:
            places = draw.choices(range(len(above)), k=len(above))
            one, other = [above[i] for i in places], [below[i] for i in places]
        else:
            one, other = draw.choices(above, k=len(above)), draw.choices(below, k=len(below))
        ratios.append(statistics.median(one) / statistics.median(other))
    return ratios


class Ledger:
    """The figures of one benchmark, in the order in which they began."""

    def __init__(self) -> None:
        self.figures: dict[Key, Figure] = {}
        self.ratios: list[Ratio] = []
        self.skipped: list[str] = []

    def put(self, what: str, who: str, value: float, unit: str = "ms", *, x: float | None = None) -> None:
        """One more value."""
        key = Key(what, who, x)
        if key not in self.figures:
            self.figures[key] = Figure(what=what, who=who, x=x, unit=unit, values=[])
        self.figures[key].values.append(round(value, 4))

    def skip(self, what: str, reason: str) -> None:
        """Something that isn't measured here, and why."""
        self.skipped.append(f"{what}: {reason}")

    def compare(self, name: str, above: Key, below: Key, *, paired: bool = True) -> None:
        """Note the ratio of two figures, where both are there."""
        if above in self.figures and below in self.figures and self.figures[below].median > 0:
            self.ratios.append(compare(name, self.figures[above], self.figures[below], paired=paired))
