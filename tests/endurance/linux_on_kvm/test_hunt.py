"""A short corruption hunt where KVM's ordinary nested paging writes guest memory."""

from __future__ import annotations

import secrets

import pytest

from tests.endurance.hunt.hunt import FoundError, kind_of, run_sequence
from tests.endurance.hunt.steps import Limits
from tests.endurance.hunt.test_hunt import require_driver
from tests.endurance.hunt.world import Tally

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]


@pytest.mark.parametrize(("driver", "guest"), [("firecracker", "probe"), ("cloud-hypervisor", "linux")])
def test_a_short_hunt_finds_nothing(driver: str, guest: str) -> None:
    require_driver(driver, guest)
    seed, tally = secrets.randbits(31), Tally()
    limits = Limits(guests=3, most_guests=5, captures=3, steps=6)
    try:
        run_sequence(seed, kind_of(driver, guest), limits, tally)
    except FoundError as error:
        pytest.fail(str(error), pytrace=False)
    assert tally.steps == 6
