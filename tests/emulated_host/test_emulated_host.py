"""ramet on a host whose KVM is an ordinary one: the drivers' contract and the case that ramet began with.

Every test of `INNER` is run in the emulated host, all in one go, and is a test here, with the inner outcome.
"""

from __future__ import annotations

import json

import pytest

from tests.copied_packages import ROOT
from tests.emulated_host.machine import EmulatedHost, HostDiedError
from tests.emulated_host.reports import Inner, collect, run_inside

pytestmark = [pytest.mark.vm, pytest.mark.timeout(2400)]

INNER = ("tests/contract", "tests/linux_on_kvm")
INNER_LIMIT_S = 1800


def paths() -> list[str]:
    return [path for path in INNER if (ROOT / path).is_dir()]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "inner_test" in metafunc.fixturenames:
        found = collect(*paths())
        metafunc.parametrize("inner_test", found, ids=[one.removeprefix("tests/") for one in found])


@pytest.fixture(scope="module")
def inner(emulated: EmulatedHost) -> Inner:
    """The inner run. What it prints is this test run's output, live with `-s`.

    A host that hangs all the same (`EmulatedHost` nudges one that has lost an interrupt) gets a second
    chance, and what its processors were at is in the output.
    """
    try:
        return run_inside(emulated, *paths(), timeout_s=INNER_LIMIT_S)
    except HostDiedError as error:
        print(f"{error}\nonce more, on a new host")
        emulated.close()
    with EmulatedHost() as another:
        return run_inside(another, *paths(), timeout_s=INNER_LIMIT_S)


def test_its_kvm_runs_linux(emulated: EmulatedHost) -> None:
    done = emulated.run(["ramet", "doctor", "--json"], 120, live=False)
    assert done.code == 0, done.output
    report = json.loads(done.output)
    [kvm] = [check for check in report["checks"] if check["name"] == "kvm"]
    assert kvm["ok"] is True, kvm
    assert {driver["name"]: driver["accelerator"] for driver in report["drivers"]}["qemu"] == "kvm"


def test_inside(inner_test: str, inner: Inner) -> None:
    phases = inner.tests.get(inner_test)
    assert phases, f"the inner run ended with {inner.done.code} and never came to it"
    for phase in phases:
        if phase.outcome == "failed":
            pytest.fail(f"in the emulated host, {phase.when}:\n{phase.text}", pytrace=False)
    for phase in phases:
        if phase.outcome == "skipped":
            pytest.skip(f"in the emulated host: {phase.text.removeprefix('Skipped: ')}")
    assert phases[-1].when == "teardown", f"the inner run ended with {inner.done.code} in the middle of it"


def test_nothing_else_went_wrong_inside(inner: Inner) -> None:
    """A file that can't be imported there, a crash of the run itself."""
    assert inner.done.code in (0, 1), inner.done.output
    assert set(inner.tests) == set(collect(*paths()))
