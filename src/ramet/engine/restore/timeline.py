"""The moments of one fork by name, from the call to the guest's proof, and the durations between them."""

from __future__ import annotations

import time
from typing import Final, Literal, get_args

from ramet.model.schema import Timings

Step = Literal["queued", "clone", "spawn", "load", "resume", "ready"]
"""The steps of a fork, each named as in `Timings`."""
STEPS: Final[tuple[Step, ...]] = get_args(Step)
"""The steps in the order in which a fork takes them."""


class Timeline:
    """The end of each step of one fork, by name. `called_at` and all moments are `time.perf_counter`'s.

    A step begins where the step before it ended, so each step is marked once, in the order of `STEPS`.
    """

    __slots__ = ("_ends", "called_at")

    def __init__(self, called_at: float) -> None:
        self.called_at = called_at
        self._ends: dict[Step, float] = {}

    def mark(self, step: Step) -> None:
        """Note that `step` ends now."""
        self._ends[step] = time.perf_counter()

    def skip(self, *steps: Step) -> None:
        """Note that `steps` weren't needed: each has a length of zero, where the last marked step ended."""
        for step in steps:
            self._ends[step] = next(reversed(self._ends.values()), self.called_at)

    def restart(self) -> None:
        """Forget all steps: the fork is made anew, and everything until now counts as `queued`."""
        self._ends.clear()
        self.mark("queued")

    def timings(self, *, capture_ms: float, pause_ms: float, decompress_ms: float) -> Timings:
        """Return the receipt's durations in ms.

        Capture and decompression happen before a fork's turn comes, once for the whole call, and so are taken
        out of `queued`. Raises `ValueError` unless every step is marked, in order.
        """
        ends = self._ends
        if tuple(ends) != STEPS:
            raise ValueError(f"a fork took the steps {', '.join(ends)}, not {', '.join(STEPS)}")
        begins = (self.called_at, *ends.values())
        took = {
            step: round((ended - begun) * 1000, 3)
            for (step, ended), begun in zip(ends.items(), begins, strict=False)
        }
        return Timings(
            decompress=decompress_ms,
            queued=round(max(0.0, took["queued"] - capture_ms - decompress_ms), 3),
            capture=capture_ms,
            pause=pause_ms,
            clone=took["clone"],
            spawn=took["spawn"],
            load=took["load"],
            resume=took["resume"],
            ready=took["ready"],
            total=round((ends["ready"] - self.called_at) * 1000, 3),
        )
