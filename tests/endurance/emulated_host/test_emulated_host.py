"""ramet on a host whose KVM is an ordinary one: the drivers' contract, and what `linux_on_kvm` has beside the
case that ramet began with (`test_seed_case.py` here).
"""

from __future__ import annotations

import json

import pytest

from tests.endurance.emulated_host import test_seed_case
from tests.endurance.emulated_host.inner_tests import (
    parametrize,
    require_nothing_else_wrong,
    require_passed,
    run_in,
)
from tests.endurance.emulated_host.machine import EmulatedHost
from tests.endurance.emulated_host.reports import Inner
from tests.support.copied_packages import ROOT

pytestmark = [pytest.mark.vm, pytest.mark.deep, pytest.mark.timeout(2400)]


_ELSEWHERE = ("-k", "not firecracker-probe")
"""The probe needs no KVM that runs Linux: `make test` holds Firecracker to the contract with it."""


def words() -> list[str]:
    """The inner pytest's arguments."""
    folders = (ROOT / "tests" / name for name in ("contract", "endurance/linux_on_kvm"))
    files = [path for folder in folders for path in sorted(folder.glob("test_*.py"))]
    named = [str(path.relative_to(ROOT)) for path in files]
    return [*(path for path in named if path not in test_seed_case.INNER), *_ELSEWHERE]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    parametrize(metafunc, words())


@pytest.fixture(scope="module")
def inner(emulated: EmulatedHost) -> Inner:
    return run_in(emulated, words())


def test_its_kvm_runs_linux(emulated: EmulatedHost) -> None:
    done = emulated.run(["ramet", "doctor", "--json"], 120, live=False)
    assert done.code == 0, done.output
    report = json.loads(done.output)
    [kvm] = [check for check in report["checks"] if check["name"] == "kvm"]
    assert kvm["ok"] is True, kvm
    assert {driver["name"]: driver["accelerator"] for driver in report["drivers"]}["qemu"] == "kvm"


def test_inside(inner_test: str, inner: Inner) -> None:
    require_passed(inner_test, inner)


def test_nothing_else_went_wrong_inside(inner: Inner) -> None:
    require_nothing_else_wrong(inner, words())
