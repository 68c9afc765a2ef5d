"""A short corruption hunt where KVM's ordinary nested paging writes guest memory."""

from __future__ import annotations

import secrets

import pytest

from tests.endurance.hunt.guests import Probe
from tests.endurance.hunt.hunt import FoundError, run_sequence
from tests.endurance.hunt.steps import Limits
from tests.endurance.hunt.test_hunt import require_driver
from tests.endurance.hunt.world import Tally

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]


def test_a_short_hunt_finds_nothing() -> None:
    require_driver("firecracker", "probe")
    seed, tally = secrets.randbits(31), Tally()
    try:
        run_sequence(seed, Probe(), Limits(guests=3, most_guests=5, captures=3, steps=6), tally)
    except FoundError as error:
        pytest.fail(str(error), pytrace=False)
    assert tally.steps == 6
