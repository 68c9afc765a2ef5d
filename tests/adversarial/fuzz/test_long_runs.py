"""Both fuzzers for longer than seconds: as programs, which `make fuzz` runs too."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.side_by_side import tell
from tests.support.copied_packages import ROOT

LONG = [("agent_run", "--seconds", "60"), ("host_run", "--frames", "300000")]
VERY_LONG = [("agent_run", "--seconds", "1800"), ("host_run", "--frames", "10000000")]


@pytest.mark.deep
@pytest.mark.timeout(600)
@pytest.mark.parametrize("words", LONG, ids=lambda words: words[0])
def test_long(words: tuple[str, ...]) -> None:
    fuzz(*words)


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("words", VERY_LONG, ids=lambda words: words[0])
def test_very_long(words: tuple[str, ...]) -> None:
    fuzz(*words)


def fuzz(program: str, *words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"tests.adversarial.fuzz.{program}", *words],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if "not fuzzed" in done.stdout:
        pytest.skip(done.stdout)
    tell(done.stdout)
