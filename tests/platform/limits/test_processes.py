"""A limit on processes and threads: what fits lives, the rest fails alone and names the limit, and cleaning
up works with nothing to spare.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.conftest import living_in
from tests.support.pids_cgroup import inside, pids_cgroup

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]
COMMAND = [sys.executable, "-m", "ramet.cli.main"]


class Limited:
    """Runs `ramet` on one home in a cgroup."""

    def __init__(self, home: Path, cgroup: Path) -> None:
        self.home = home
        self.cgroup = cgroup

    def __call__(self, *words: str, program: list[str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            inside(self.cgroup, *(program or COMMAND), *words),
            env={**os.environ, "RAMET_HOME": str(self.home)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def json(self, *words: str, code: int) -> Any:
        done = self(*words, "--json")
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        assert "internal" not in done.stderr
        assert "Traceback" not in done.stderr
        return msgspec.json.decode(done.stdout)


@pytest.mark.proves("I7")
@pytest.mark.parametrize("most", [14, *(pytest.param(most, marks=pytest.mark.deep) for most in (3, 25))])
def test_forks_that_fit_live_and_the_others_name_the_limit(warm_home: Path, most: int) -> None:
    with pids_cgroup(most) as cgroup:
        ramet = Limited(warm_home, cgroup)
        code = 5 if most == 3 else 6
        report = ramet.json("fork", "-n", "12", "--name", "many", "warm", code=code)
        lived = [fork for fork in report["forks"] if fork["ok"]]
        failed = [fork for fork in report["forks"] if not fork["ok"]]
        try:
            assert len(lived) + len(failed) == 12
            assert bool(lived) == (most > 3)
            for fork in failed:
                assert fork["error"]["code"] == "limit_reached", fork
                assert f"allows {most} processes and threads (pids.max)" in fork["error"]["message"]
            threads = int((cgroup / "pids.current").read_text())
            if lived:
                # As many as fit beside the command and its watcher: there is no room for one more, which
                # takes another thread while it starts.
                assert threads + threads // len(lived) + 3 > most, (threads, len(lived))
            # With not a process to spare, but for the one that asks.
            (cgroup / "pids.max").write_text(f"{threads + 1}\n")
            for error in lived:
                answered = ramet("exec", error["id"], "true")
                assert answered.returncode == 0, answered.stderr
        finally:
            (cgroup / "pids.max").write_text(f"{int((cgroup / 'pids.current').read_text()) + 1}\n")
            if lived:
                removed = ramet("rm", "-f", *(error["id"] for error in lived))
                assert (removed.returncode, removed.stderr) == (0, "")
        assert living_in(warm_home) == []
        assert [instance["name"] for instance in ramet.json("ps", "-a", code=0)] == ["warm"]


_PLAIN = """
import sys, ramet.sync
try:
    with ramet.sync.Host():
        print("opened")
except ramet.UnavailableError as error:
    print(error)
"""


def test_a_plain_host_says_that_it_gets_no_thread(warm_home: Path) -> None:
    with pids_cgroup(1) as cgroup:
        said = Limited(warm_home, cgroup)(program=[sys.executable, "-c", _PLAIN])
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith("no thread can be started: the cgroup "), said
    assert "allows 1 processes and threads (pids.max)" in said.stdout


@pytest.mark.deep
def test_a_fork_of_many_that_runs_out_of_open_files_keeps_those_that_fit(warm_home: Path) -> None:
    words = ["sh", "-c", 'ulimit -n 40; exec "$0" "$@"', *COMMAND]
    environment = {**os.environ, "RAMET_HOME": str(warm_home)}
    done = subprocess.run(
        [*words, "fork", "-n", "12", "--name", "many", "--json", "warm"],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert "internal" not in done.stderr
    report = msgspec.json.decode(done.stdout)
    if done.returncode == 0:
        assert all(receipt["ok"] for receipt in report["forks"])
    else:
        assert done.returncode in {5, 6}, done.stderr
        assert "RLIMIT_NOFILE" in done.stdout
    for receipt in report.get("forks", []):
        if receipt["ok"]:
            subprocess.run([*COMMAND, "rm", "-f", receipt["id"]], env=environment, check=True, timeout=60)
    assert living_in(warm_home) == []
