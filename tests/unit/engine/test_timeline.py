"""The durations of a fork's steps: by name, and what a step costs that isn't needed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from ramet.engine.restore.timeline import STEPS, Step, Timeline
from ramet.model.schema import Timings

_OF_THE_CALL = {"decompress", "capture", "pause", "total"}
"""Once for all forks of a call, or of all steps."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The moments that are read next."""
    moments: list[float] = []
    monkeypatch.setattr(
        "ramet.engine.restore.timeline.time", SimpleNamespace(perf_counter=lambda: moments.pop(0))
    )
    return moments


def test_the_steps_are_those_of_a_receipt() -> None:
    assert list(STEPS) == [field for field in Timings.__struct_fields__ if field not in _OF_THE_CALL]


def test_each_step_takes_what_lies_before_its_mark(clock: list[float]) -> None:
    clock += [10.1, 10.103, 10.11, 10.1104, 10.2, 10.3]
    fork = Timeline(10.0)
    for step in STEPS:
        fork.mark(step)
    assert fork.timings(capture_ms=20.0, pause_ms=5.0, decompress_ms=30.0) == Timings(
        decompress=30.0,
        queued=50.0,
        capture=20.0,
        pause=5.0,
        clone=3.0,
        spawn=7.0,
        load=0.4,
        resume=89.6,
        ready=100.0,
        total=300.0,
    )


def test_a_skipped_step_takes_no_time(clock: list[float]) -> None:
    clock += [1.0, 2.0, 3.0, 4.0]
    fork = Timeline(0.5)
    fork.mark("queued")
    fork.mark("clone")
    fork.skip("spawn", "load")
    fork.mark("resume")
    fork.mark("ready")
    timings = fork.timings(capture_ms=0.0, pause_ms=0.0, decompress_ms=0.0)
    assert (timings.spawn, timings.load) == (0.0, 0.0)
    assert (timings.queued, timings.clone, timings.resume, timings.ready) == (500.0, 1000.0, 1000.0, 1000.0)


def test_a_fork_that_is_made_anew_waited_until_then(clock: list[float]) -> None:
    clock += [1.0, 2.0, 7.0, *(8.0 + number for number in range(5))]
    fork = Timeline(0.0)
    fork.mark("queued")
    fork.mark("clone")
    fork.restart()
    for step in STEPS[1:]:
        fork.mark(step)
    timings = fork.timings(capture_ms=0.0, pause_ms=0.0, decompress_ms=0.0)
    assert (timings.queued, timings.clone, timings.total) == (7000.0, 1000.0, 12000.0)


@pytest.mark.parametrize(
    "steps", [STEPS[:-1], (*STEPS[:2], *STEPS[3:]), (STEPS[1], STEPS[0], *STEPS[2:])], ids=str
)
def test_a_step_that_is_missing_or_out_of_order_is_no_fork(steps: tuple[Step, ...]) -> None:
    fork = Timeline(0.0)
    for step in steps:
        fork.mark(step)
    with pytest.raises(ValueError, match="a fork took the steps"):
        fork.timings(capture_ms=0.0, pause_ms=0.0, decompress_ms=0.0)
