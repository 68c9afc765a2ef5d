"""`python -m benchmarks`: what it writes, and that it leaves nothing behind, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from benchmarks.document import read

from tests.conftest import living_in
from tests.support.firecracker import find_firecracker

ROOT = Path(__file__).parents[2]
LIMIT_S = 120


def words(*more: str | Path) -> list[str]:
    return [sys.executable, "-m", "benchmarks", *map(str, more)]


@pytest.fixture
def environment(homes: Path) -> Iterator[dict[str, str]]:
    """A cache of its own, for a run's homes; Firecracker is found, a kernel for Linux guests isn't."""
    program = find_firecracker()
    if program is None:
        pytest.skip("there is no Firecracker here")
    with tempfile.TemporaryDirectory(dir=homes) as cache:
        yield {**os.environ, "RAMET_CACHE": cache, "RAMET_FIRECRACKER": str(program)}
        assert living_in(Path(cache)) == []


def left_in(environment: dict[str, str]) -> list[Path]:
    return list(Path(environment["RAMET_CACHE"]).glob("bench-*"))


def test_wrong_words() -> None:
    done = subprocess.run(
        words("--only", "everything"), cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "latency" in done.stderr


@pytest.mark.vm
def test_some_benchmarks(environment: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run(
        words("--quick", "--only", "latency", "thousand", "--output", tmp_path),
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr
    document = read(tmp_path / "benchmarks" / "results.json")
    assert [outcome.name for outcome in document.outcomes] == ["latency", "thousand"]
    latency, thousand = document.outcomes
    found = {(figure.what, figure.who): figure.values for figure in latency.figures}
    ready = found["fork to ready", "firecracker, ramet"]
    assert len(ready) == len(found["fork to ready", "firecracker, floor"]) > 1
    assert all(value > 0 for value in ready)
    assert min(found["fork to first exec", "firecracker, ramet"]) > min(ready)
    assert any(who.startswith("qemu") for who in latency.skipped), "what a machine lacks is said"
    (answered,) = (figure for figure in thousand.figures if figure.what == "forks that answered")
    assert answered.values == [answered.x]
    page = (tmp_path / "benchmarks.md").read_text()
    assert "A quick run" in page
    assert left_in(environment) == []


@pytest.mark.vm
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.deep)])
def test_one_that_is_interrupted(environment: dict[str, str], tmp_path: Path, number: signal.Signals) -> None:
    process = subprocess.Popen(
        words("--only", "fanout", "--output", tmp_path), cwd=ROOT, env=environment, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + LIMIT_S
        while len(living_in(Path(environment["RAMET_CACHE"]))) < 3:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait(LIMIT_S) == 130
    finally:
        process.kill()
        process.wait()
    assert left_in(environment) == []
    assert not (tmp_path / "benchmarks.md").exists()
