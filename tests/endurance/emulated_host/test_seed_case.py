"""The case that ramet began with, on a host whose KVM is an ordinary one: continuous integration always runs
it.
"""

from __future__ import annotations

import pytest

from tests.endurance.emulated_host.inner_tests import (
    parametrize,
    require_nothing_else_wrong,
    require_passed,
    run_in,
)
from tests.endurance.emulated_host.machine import EmulatedHost
from tests.endurance.emulated_host.reports import Inner

pytestmark = [pytest.mark.vm, pytest.mark.deep, pytest.mark.timeout(2400)]

INNER = ("tests/endurance/linux_on_kvm/test_seed_case.py",)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    parametrize(metafunc, INNER)


@pytest.fixture(scope="module")
def inner(emulated: EmulatedHost) -> Inner:
    return run_in(emulated, INNER)


def test_inside(inner_test: str, inner: Inner) -> None:
    require_passed(inner_test, inner)


def test_nothing_else_went_wrong_inside(inner: Inner) -> None:
    require_nothing_else_wrong(inner, INNER)
