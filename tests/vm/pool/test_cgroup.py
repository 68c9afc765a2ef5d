"""ramet in a memory cgroup: what it says, what it refuses, and a pool that stays within it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ramet.units import MIB
from tests.conftest import assert_nothing_left
from tests.support.cgroup_v1 import inside, v1_cgroup
from tests.support.shell import Shell, wait_until

pytestmark = pytest.mark.vm

_LIMIT_BYTES = 700 * MIB
_LIMIT_S = 120


@pytest.fixture(scope="module")
def cgroup() -> Iterator[Path]:
    with v1_cgroup("memory", limit_in_bytes=_LIMIT_BYTES) as place:
        yield place


@pytest.fixture
def small() -> Iterator[Path]:
    """One in which 20 warm VMMs, of 17 MB each, have no room."""
    with v1_cgroup("memory", limit_in_bytes=250 * MIB) as place:
        yield place


def ramet(cgroup: Path, home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        inside(cgroup, sys.executable, "-m", "ramet.cli.main", *words),
        env={**os.environ, "RAMET_HOME": str(home)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_LIMIT_S,
        check=False,
    )


def test_doctor_names_the_cgroup(cgroup: Path, tmp_path: Path) -> None:
    report = json.loads(ramet(cgroup, tmp_path, "doctor", "--json").stdout)
    (memory,) = (check for check in report["checks"] if check["name"] == "memory")
    assert f"({cgroup} allows 700.0 MiB)" in memory["found"]
    assert "GiB" not in memory["found"]


def test_a_guest_that_cant_have_its_memory_is_refused(cgroup: Path, tmp_path: Path) -> None:
    done = ramet(cgroup, tmp_path, "run", "--memory", "4G", "--json", "builtin")
    assert done.returncode == 2, done.stderr
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "usage"
    assert f"its memory cgroup {cgroup} allows 700.0 MiB" in error["message"]
    assert "MemoryMax=" in error["hint"]


def controller(cgroup: Path, home: Path) -> dict[str, str | None]:
    (found,) = json.loads(ramet(cgroup, home, "pool", "--json").stdout)["keepers"]
    return dict(found)


@pytest.mark.deep
def test_a_pool_stays_within_it(small: Path, home: Path) -> None:
    shell = Shell(home)
    booting = shell.start("run", "--name", "base", "builtin")
    said = booting.communicate(timeout=_LIMIT_S)[1]
    if booting.returncode == 5:
        pytest.skip(said.decode())
    shell("template", "base")
    server = subprocess.Popen(
        inside(small, sys.executable, "-m", "ramet.cli.main", "serve", "--warm", "30"),
        env=shell.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        server.stdout.readline()
        # From outside, so that it would like to have as many.
        shell("fork", "-n", "20", "--name", "some", "base")
        shell("rm", "-f", *(f"some-{number}" for number in range(1, 21)))
        wait_until(lambda: "is to stay free" in (controller(small, home)["held_back"] or ""), _LIMIT_S)
        assert "oom_kill 0" in (small / "memory.oom_control").read_text()
        assert server.poll() is None
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=_LIMIT_S) == 0
    finally:
        server.kill()
        server.communicate(timeout=_LIMIT_S)
        shell("rm", "-f", *[instance["name"] for instance in shell.json("ps", "-a", "--json")])
    assert_nothing_left(home)
