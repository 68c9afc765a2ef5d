"""The regression guard: forks against the floor's, in pairs, in one run.

A test fails when a ratio is above what is allowed here by more than the noise that was measured with it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import ramet
from benchmarks import guests
from benchmarks.figures import Figure, Ratio, compare

ONE: Final = 1
MANY: Final = 100

ALLOWED: Final = {
    ("firecracker", ONE): 1.55,
    ("firecracker", MANY): 1.9,
    ("qemu", ONE): 1.55,
}
"""Ratios of medians, ramet's whole call over the floor, by driver and forks in a call: what a quiet machine
shows, and about a fifth more. When these were set: 1.27, 1.60, 1.27.

The bars that ramet is held to (benchmarks/bars.py) are lower: this is to notice what gets worse.
"""

_CONFIDENCE: Final = 0.99
"""With the lower end of such an interval above what is allowed, the ratio is too, in 199 runs of 200."""
_ROUNDS: Final = {ONE: 15, MANY: 4}
_MOST_TIMES: Final = 3
"""When it looks bad, so often as many rounds: what is really slower stays so, in a narrower interval."""

Call = Callable[[ramet.VM, int], Awaitable[None]]
"""Makes so many forks of a template in one call and notes nothing."""


async def guard(
    driver: str, base: ramet.VM, floor: guests.Floor, count: int, *, delay: Call | None = None
) -> Ratio:
    """The ratio, measured until it is within what is allowed or has had all its rounds.

    `delay` is done within each of ramet's calls, for the test of the guard.
    """
    allowed = ALLOWED[driver, count]
    own = Figure(what="wall", who="ramet", unit="ms", values=[])
    floors = Figure(what="wall", who="floor", unit="ms", values=[])
    await _call(base, count, None)
    for _ in range(_MOST_TIMES):
        for number in range(_ROUNDS[count]):
            # Now one first, now the other: what was there just before matters (docs/internals/benchmarks.md).
            if number % 2 == 0:
                own.values.append(await _call(base, count, delay))
            done = floor.round(count, guests.concurrency())
            floors.values.append(done["wall_ms"])
            if number % 2 == 1:
                own.values.append(await _call(base, count, delay))
        found = compare(f"{driver}: {count} over floor", own, floors, confidence=_CONFIDENCE)
        if found.ratio <= allowed:
            break
    return found


async def _call(base: ramet.VM, count: int, delay: Call | None) -> float:
    clock = guests.Clock()
    if delay is not None:
        await delay(base, count)
    async with base.fork(count):
        return clock.ms


def verdict(driver: str, count: int, found: Ratio) -> str | None:
    """Why the guard fires, or None."""
    allowed = ALLOWED[driver, count]
    if found.low <= allowed:
        return None
    return (
        f"{driver}: {count} fork(s) in a call take {found.ratio:.2f} times the floor ({found.low:.2f} to "
        f"{found.high:.2f}, {found.n} pairs), allowed are {allowed:g}: "
        "`python -m benchmarks --only latency` shows which step"
    )


async def template(host: ramet.Host, driver: str, scratch: Path) -> tuple[ramet.VM, guests.Floor]:
    """A template of that driver's guest, and its floor. Raises what the engine does where it can't run."""
    base = await (await guests.boot(host, driver, "256M")).template()
    return base, guests.Floor(driver, base.directory, scratch / "floor")
