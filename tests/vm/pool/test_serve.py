"""`ramet serve` and `ramet pool`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.shell import Shell, wait_until

pytestmark = [pytest.mark.vm, pytest.mark.anyio]
LIMIT_S = 60


def start(home: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "ramet.cli.main", *words],
        env={**os.environ, "RAMET_HOME": str(home)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(home: Path, *words: str) -> str:
    return Shell(home)(*words).stdout.decode()


def loaded(home: Path) -> list[dict[str, Any]]:
    entries = json.loads(run(home, "pool", "--json"))["entries"]
    return [entry for entry in entries if (entry["state"], entry["stage"]) == ("ready", "loaded")]


@contextmanager
def serving(home: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    child = start(home, "serve", *words)
    try:
        yield child
    finally:
        child.kill()
        child.communicate(timeout=LIMIT_S)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
async def test_it_keeps_a_pool_for_others_and_ends_it_when_told(
    probe_home: Path, number: signal.Signals
) -> None:
    with serving(probe_home, "--warm", "2") as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        assert line == f"ready: 2 of at most 2 VMMs are warm in {probe_home}; Ctrl-C ends them\n"
        run(probe_home, "fork", "base", "--name", "first")
        wait_until(lambda: len(loaded(probe_home)) >= 1)
        (made,) = json.loads(run(probe_home, "fork", "base", "--name", "second", "--json"))["forks"]
        assert made["warm"] == "loaded"
        table = run(probe_home, "pool")
        assert f"process {server.pid} keeps at most 2" in table
        headers = "ID DRIVER WARM SOURCE STATE PID PSS AGE CONTROLLER"
        assert " ".join(table.splitlines()[0].split()) == headers
        server.send_signal(number)
        assert server.wait(timeout=LIMIT_S) == 0
        assert server.stderr is not None
        assert server.stderr.read() == ""
    # Its forks live on, also those that it is the parent of.
    assert not (probe_home / "pool").exists()
    assert "no process keeps a pool" in run(probe_home, "pool")
    assert [instance["state"] for instance in json.loads(run(probe_home, "ps", "--json"))].count(
        "running"
    ) == 2
    run(probe_home, "rm", "-f", "first", "second")


async def test_a_document_when_it_is_ready(probe_home: Path) -> None:
    with serving(probe_home, "--warm", "1", "--json") as server:
        assert server.stdout is not None
        report = json.loads(server.stdout.readline())
        (kept,) = report["keepers"]
        assert kept == {"pid": server.pid, "warm": 1, "held_back": None, "seen": True}
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=LIMIT_S) == 0
        assert server.stdout.read() == ""


async def test_a_budget_of_none_is_a_usage_error(probe_home: Path) -> None:
    child = start(probe_home, "serve", "--warm", "0")
    _, err = child.communicate(timeout=LIMIT_S)
    assert child.returncode == 2
    assert "--warm" in err
