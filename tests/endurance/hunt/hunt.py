"""A hunt: sequence after sequence, each from a seed of its own, until the time is over or one finds
something.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import anyio
import hypothesis
from hypothesis import strategies

from ramet import config
from tests.endurance.hunt.guests import Kind, Linux, Probe
from tests.endurance.hunt.killed import Killer
from tests.endurance.hunt.sequence import Hunt, end_everything
from tests.endurance.hunt.steps import Limits
from tests.endurance.hunt.world import Tally


class FoundError(Exception):
    """A sequence found something. Says which, what, and the steps that led there."""


def kind_of(driver: str, guest: str) -> Kind:
    """The guests that are hunted."""
    return Probe() if guest == "probe" else Linux(driver)


def run_sequence(
    seed: int, kind: Kind, limits: Limits, tally: Tally, *, keep: bool = False, reduce: bool = False
) -> None:
    """One sequence. Raises `FoundError`; nothing of it is left, unless it is to be kept."""
    calls: list[int] = []
    ran: list[Hunt] = []
    failures: list[tuple[Hunt, BaseException]] = []

    def body(steps: list[int]) -> None:
        # The first one is the simplest, whatever the seed.
        calls.append(1)
        if len(calls) == 1 or (ran and not (reduce and failures)):
            return
        home = Path(tempfile.mkdtemp(dir=config.cache_directory(), prefix="tests-hunt-"))
        hunt = Hunt(home, kind, limits, tally, killer)
        hunt.seed = seed
        ran.append(hunt)
        try:
            anyio.run(hunt.run, steps)
        except Exception as error:
            failures.append((hunt, error))
            if reduce:
                raise
        finally:
            if not (keep and failures):
                anyio.run(end_everything, home)

    phases = [hypothesis.Phase.generate, *([hypothesis.Phase.shrink] if reduce else [])]
    settings = hypothesis.settings(
        max_examples=10,
        phases=phases,
        deadline=None,
        database=None,
        print_blob=False,
        report_multiple_bugs=False,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    least = 1 if reduce else limits.steps
    numbers = strategies.integers(0, (1 << 64) - 1)
    sequences = strategies.lists(numbers, min_size=least, max_size=limits.steps, unique=True)
    test = hypothesis.seed(seed)(settings(hypothesis.given(sequences)(body)))
    with Killer() as killer:
        try:
            test()
        except Exception:
            # While it reduces, hypothesis raises what `body` did, or that it didn't happen again.
            if not failures:
                raise
    assert ran, f"seed {seed} gave no sequence"
    if failures:
        hunt, found = min(failures, key=lambda failure: len(failure[0].journal))
        steps = "\n".join(hunt.journal)
        where = hunt.home.root if keep else "removed"
        raise FoundError(f"seed {seed}: {_said(found)}\n{steps}\nhome: {where}") from found


def _said(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"


def run_hunt(kind: Kind, limits: Limits, *, seed: int, seconds: float, keep: bool = False) -> Tally:
    """Sequences from `seed` on, begun for as long as there is time. Raises `FoundError` with the first
    that finds something.
    """
    tally = Tally()
    until = time.monotonic() + seconds
    while True:
        began = time.monotonic()
        run_sequence(seed, kind, limits, tally, keep=keep)
        print(f"seed {seed}: {tally.steps} steps so far, {time.monotonic() - began:.1f} s", flush=True)
        seed += 1
        if time.monotonic() >= until:
            return tally


def report(tally: Tally) -> str:
    """What was done, in lines."""
    done = ", ".join(f"{count} {what}" for what, count in sorted(tally.done.items()))
    return (
        f"{tally.steps} steps in {tally.sequences} sequences, {tally.writes} writes,"
        f" {tally.guests_checked} times a guest was asked, {tally.files_checked} times a published file was"
        f" read, at most {tally.most_guests} guests lived\n{done}"
    )
