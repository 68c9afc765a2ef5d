"""Hunts on each driver, from another seed each time: `RAMET_HUNT_SEED` gives one again."""

from __future__ import annotations

import os
import secrets

import anyio
import pytest

from ramet.memory.ram import changed_pages
from tests import machines
from tests.endurance.hunt.guests import Probe
from tests.endurance.hunt.hunt import FoundError, kind_of, report, run_hunt, run_sequence
from tests.endurance.hunt.model import ZERO, Contents, Page
from tests.endurance.hunt.steps import Choices, Limits
from tests.endurance.hunt.world import Tally
from tests.side_by_side import tell

LIMITS = {
    # 24 steps take about 20 seconds on a machine with two processors.
    "probe": Limits(guests=12, most_guests=16, steps=24),
    "linux": Limits(guests=5, most_guests=8, captures=4, steps=8, checked=2),
}
SHORT = {**LIMITS, "probe": Limits(guests=8, most_guests=12, steps=12)}

LONG_S, VERY_LONG_S = 100, 3600


def require_driver(driver: str, guest: str) -> None:
    """Skip with the reason where that can't run."""
    anyio.run(machines.require, driver, "probe" if guest == "probe" else "builtin")


@pytest.mark.proves("I1")
@pytest.mark.vm
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("driver", "guest"),
    [("firecracker", "probe"), pytest.param("qemu", "linux", marks=pytest.mark.deep)],
)
def test_a_short_hunt_finds_nothing(driver: str, guest: str) -> None:
    require_driver(driver, guest)
    seed = int(os.environ.get("RAMET_HUNT_SEED") or secrets.randbits(31))
    limits, tally = SHORT[guest], Tally()
    try:
        run_sequence(seed, kind_of(driver, guest), limits, tally)
    except FoundError as error:
        pytest.fail(f"RAMET_HUNT_SEED={seed} gives this again: {error}", pytrace=False)
    tell(f"hunt on {driver}, seed {seed}: {report(tally).splitlines()[0]}")
    assert tally.steps == limits.steps
    assert tally.files_checked > tally.steps


@pytest.mark.proves("I1")
@pytest.mark.vm
@pytest.mark.deep
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("driver", "guest"), [("firecracker", "probe"), ("qemu", "linux")])
def test_a_long_hunt_finds_nothing(driver: str, guest: str) -> None:
    hunt(driver, guest, LONG_S)


@pytest.mark.vm
@pytest.mark.soak
@pytest.mark.timeout(2 * VERY_LONG_S)
@pytest.mark.parametrize(("driver", "guest"), [("firecracker", "probe"), ("qemu", "linux")])
def test_a_very_long_hunt_finds_nothing(driver: str, guest: str) -> None:
    hunt(driver, guest, VERY_LONG_S)


def hunt(driver: str, guest: str, seconds: float) -> None:
    """Sequence after sequence; none is begun after that time."""
    require_driver(driver, guest)
    seed = int(os.environ.get("RAMET_HUNT_SEED") or secrets.randbits(31))
    try:
        tally = run_hunt(kind_of(driver, guest), LIMITS[guest], seed=seed, seconds=seconds)
    except FoundError as error:
        pytest.fail(f"RAMET_HUNT_SEED={seed} gives this again: {error}", pytrace=False)
    tell(f"{seconds:.0f} s of hunts on {driver}, from seed {seed}: {report(tally).splitlines()[0]}")


@pytest.mark.vm
@pytest.mark.timeout(300)
def test_a_hunt_notices_a_page_that_the_engine_loses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this a hunt that looks at nothing would pass."""
    require_driver("firecracker", "probe")
    monkeypatch.setattr("ramet.engine.capture.capture.changed_pages", lambda *told: changed_pages(*told)[:-1])
    with pytest.raises(FoundError, match="CorruptionError"):
        run_sequence(1, Probe(), Limits(guests=3, most_guests=6, steps=12, kills=False), Tally())


def test_a_step_follows_from_its_number() -> None:
    one, other = Choices(7), Choices(7)
    assert [one.number(1000) for _ in range(5)] == [other.number(1000) for _ in range(5)]
    assert one.pick("abcdef") == other.pick("abcdef")


def test_pages_are_what_a_guest_has() -> None:
    page = Page(3).with_word(511, 9).with_word(0, 0).with_word(511, 10)
    words = [int.from_bytes(page.encoded()[at : at + 8], "little") for at in range(0, 4096, 8)]
    assert words == [0, *[3] * 510, 10]
    assert page.sum == sum(words)
    assert ZERO.encoded() == bytes(4096)
    original = Contents({1: page}, {2: 5})
    fork = original.copy()
    fork.memory[1], fork.disk[2] = ZERO, 6
    assert (original.memory[1], original.disk[2]) == (page, 5)
