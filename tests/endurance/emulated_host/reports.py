"""What the inner pytest found, by the names of its tests."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Final, NamedTuple

from tests.endurance.emulated_host.machine import Done, EmulatedHost
from tests.endurance.emulated_host.tree import MOUNTED
from tests.support.copied_packages import ROOT

_REPORT: Final = f"{MOUNTED}/tmp/report"
_COLLECT_LIMIT_S: Final = 120
_TEST_LIMIT_S: Final = 600
"""For an inner test that asks for no other limit: pyproject's is meant for machines ten times as quick."""


class Phase(NamedTuple):
    """One phase (`setup`, `call`, `teardown`; `collect` for a file) of an inner test."""

    when: str
    outcome: str
    text: str
    seconds: float


class Inner(NamedTuple):
    """An inner run: every test's phases by its id, and how pytest ended."""

    tests: dict[str, list[Phase]]
    done: Done


def collect(*selection: str) -> list[str]:
    """The ids of the tests that those paths and options of pytest select, as the inner pytest will call them.

    Raises `RuntimeError` with what pytest says when they can't be collected.
    """
    words = [sys.executable, "-m", "pytest", "--collect-only", "--quiet", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*words, *selection],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_COLLECT_LIMIT_S,
        check=False,
    )
    found = [line for line in done.stdout.splitlines() if "::" in line]
    if done.returncode != 0 or not found:
        raise RuntimeError(f"collecting {' '.join(selection)}: {done.stdout}{done.stderr}")
    return found


def run_inside(host: EmulatedHost, *selection: str, timeout_s: float) -> Inner:
    """Run pytest on those paths, with those options, in the host.

    Tests that the run didn't get to are missing from the result.

    Raises `HostDiedError`.
    """
    words = ["-p", "no:cacheprovider", "-v", "--color=no"]
    words += ["-p", "tests.endurance.emulated_host.inside.reporting"]
    limits = [f"--timeout={_TEST_LIMIT_S}"]
    environment = {"EMULATED_HOST_REPORT": _REPORT}
    done = host.run(["python3", "-m", "pytest", *words, *limits, *selection], timeout_s, environment)
    tests: dict[str, list[Phase]] = {}
    for line in host.read(_REPORT).splitlines():
        fields = json.loads(line)
        phase = Phase(fields["when"], fields["outcome"], fields["text"], fields["seconds"])
        tests.setdefault(fields["id"], []).append(phase)
    return Inner(tests, done)
