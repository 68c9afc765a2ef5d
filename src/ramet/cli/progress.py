"""Progress of long work: a line on standard error that is erased when the work ends.

Only on a terminal, and never with --json. The event loop draws the line, so there is no thread, and nothing
is drawn while the terminal doesn't take it (Ctrl-S): a guest that is paused at that moment must not wait.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from ramet.cli import output
from ramet.cli.widths import cropped, shorten
from ramet.progress import Progress, received_by

if TYPE_CHECKING:
    import asyncio

_FIRST_AFTER_S: Final = 0.4
"""Quicker work shows nothing: a line that flashes by tells nobody anything."""
_EVERY_S: Final = 0.1
_ESTIMATE_AFTER_S: Final = 1.0
_SPEED_OVER_S: Final = 5.0
"""A speed is the mean of the last seconds: steady to look at, and true soon after a change."""
_SHORTEST_WHAT: Final = 16
_FRAMES: Final = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_PLAIN_FRAMES: Final = "-\\|/"


@contextmanager
def working(what: str, *, quiet: bool = False) -> Iterator[None]:
    """Show `what`, and the reports of the work inside the block, until the block ends."""
    if quiet or not output.has_status_line():
        yield
        return
    import asyncio

    line = _Line(what, asyncio.get_running_loop())
    try:
        with received_by(line.receive):
            yield
    finally:
        line.close()


class _Line:
    """The line of one block of work."""

    def __init__(self, what: str, loop: asyncio.AbstractEventLoop) -> None:
        self._what = output.clean(what)
        self._loop = loop
        self._began = self._stage_began = time.monotonic()
        self._progress: Progress | None = None
        self._first = 0
        self._recent: deque[tuple[float, int]] = deque()
        self._recent_stage = self._stage_began
        self._drawn = 0
        self._timer = loop.call_later(_FIRST_AFTER_S, self._draw)

    def receive(self, progress: Progress) -> None:
        """Keep the latest report, from whichever thread it comes."""
        before = self._progress
        if before is None or before.stage != progress.stage or progress.done < before.done:
            self._stage_began, self._first = time.monotonic(), progress.done
        self._progress = progress

    def close(self) -> None:
        """Erase the line."""
        self._timer.cancel()
        if self._drawn:
            output.show_status("")

    def _draw(self) -> None:
        self._timer = self._loop.call_later(_EVERY_S, self._draw)
        frames = _FRAMES if output.can_show(_FRAMES) else _PLAIN_FRAMES
        now = time.monotonic()
        details = describe(
            self._progress,
            now - self._began,
            now - self._stage_began,
            first=self._first,
            speed=self._speed(now),
        )
        columns = output.status_columns()
        what = shorten(self._what, max(_SHORTEST_WHAT, columns - len(details) - len("- : ")), mark="..")
        frame = frames[self._drawn % len(frames)]
        output.show_status(cropped(f"{frame} {what}: {details}", columns))
        self._drawn += 1

    def _speed(self, now: float) -> float | None:
        """Return the bytes or things a second of the last seconds; None while that is too short a time."""
        if self._progress is None:
            return None
        recent = self._recent
        if self._recent_stage != self._stage_began:
            recent.clear()
            self._recent_stage = self._stage_began
        recent.append((now, self._progress.done))
        while now - recent[0][0] > _SPEED_OVER_S:
            recent.popleft()
        since, done = recent[0]
        return (self._progress.done - done) / (now - since) if now - since >= _ESTIMATE_AFTER_S else None


def describe(
    progress: Progress | None,
    spent_s: float,
    stage_s: float,
    *,
    first: int = 0,
    speed: float | None = None,
) -> str:
    """Put into words how far the work is: `checking mem, 45 %, 12 s left, 1.2 GiB of 2.7 GiB, 98 MiB/s`.

    `spent_s` is the time since the work began, `stage_s` since its present stage did, at `first`; `speed` is
    that of the last seconds. Where nobody knows how much there is to do, the time that was spent is shown
    instead of the time left.
    """
    stage = [progress.stage] if progress is not None and progress.stage else []
    if progress is None or progress.total <= 0:
        return ", ".join([*stage, duration(spent_s)])
    done, total = min(progress.done, progress.total), progress.total
    in_bytes = progress.unit == "bytes"
    parts = [*stage, f"{100 * done // total} %" if in_bytes else f"{done} of {total} {progress.unit}"]
    mean = (done - first) / stage_s if first < done and stage_s >= _ESTIMATE_AFTER_S else None
    if done < total and (expected := speed or mean):
        parts.append(f"{duration(max(1.0, (total - done) / expected))} left")
    if in_bytes:
        from ramet.units import format_bytes

        parts.append(f"{format_bytes(done)} of {format_bytes(total)}")
        if speed is not None and done < total:
            parts.append(f"{format_bytes(int(speed))}/s")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Write a time in people's words: `12 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
