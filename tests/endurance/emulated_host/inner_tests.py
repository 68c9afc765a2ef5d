"""Tests of the emulated host's own pytest as tests of this one: a module has an `INNER` and takes these in.

Every test of `INNER` is run in the host, all in one go, and is a test of the module, with the inner outcome.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.endurance.emulated_host.machine import EmulatedHost, HostDiedError
from tests.endurance.emulated_host.reports import Inner, collect, run_inside
from tests.side_by_side import tell

INNER_LIMIT_S = 1800
_LONGEST = 8


def parametrize(metafunc: pytest.Metafunc, words: Sequence[str]) -> None:
    """Make a test of each inner test that `words`, the inner pytest's arguments, select."""
    if "inner_test" in metafunc.fixturenames:
        found = collect(*words)
        metafunc.parametrize("inner_test", found, ids=[name.removeprefix("tests/") for name in found])


def run_in(emulated: EmulatedHost, words: Sequence[str]) -> Inner:
    """The inner run. What it prints is this test run's output, live with `-s`.

    A host that hangs all the same (`EmulatedHost` interrupts one that has lost an interrupt) gets a second
    chance, and what its processors were at is in the output.
    """
    try:
        inner = run_inside(emulated, *words, timeout_s=INNER_LIMIT_S)
    except HostDiedError as error:
        print(f"{error}\nonce more, on a new host")
        emulated.close()
        with EmulatedHost() as another:
            inner = run_inside(another, *words, timeout_s=INNER_LIMIT_S)
    tell(summary(inner))
    return inner


def summary(inner: Inner) -> str:
    """How long the inner tests took, and which took longest: outside, one of them has waited for all."""
    seconds = {name: sum(phase.seconds for phase in phases) for name, phases in inner.tests.items()}
    longest = sorted(seconds, key=seconds.__getitem__, reverse=True)[:_LONGEST]
    listed = "; ".join(f"{name.removeprefix('tests/')} {seconds[name]:.0f} s" for name in longest)
    return f"emulated host: {len(seconds)} tests in {sum(seconds.values()):.0f} s, the longest: {listed}"


def require_passed(inner_test: str, inner: Inner) -> None:
    """The inner test's outcome as this one's."""
    phases = inner.tests.get(inner_test)
    assert phases, f"the inner run ended with {inner.done.code} and never came to it"
    for phase in phases:
        if phase.outcome == "failed":
            pytest.fail(f"in the emulated host, {phase.when}:\n{phase.text}", pytrace=False)
    for phase in phases:
        if phase.outcome == "skipped":
            pytest.skip(f"in the emulated host: {phase.text.removeprefix('Skipped: ')}")
    assert phases[-1].when == "teardown", f"the inner run ended with {inner.done.code} in the middle of it"


def require_nothing_else_wrong(inner: Inner, words: Sequence[str]) -> None:
    """No file that can't be imported there, no crash of the run itself."""
    assert inner.done.code in (0, 1), inner.done.output
    assert set(inner.tests) == set(collect(*words))
