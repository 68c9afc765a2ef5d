"""Several ramet processes on one home and one instance."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

import ramet

pytestmark = [pytest.mark.vm, pytest.mark.anyio]


def command(home: Path, *arguments: str) -> subprocess.Popen[str]:
    """The `ramet` command on `home`, running."""
    return subprocess.Popen(
        [sys.executable, "-m", "ramet.cli.main", *arguments],
        env={**os.environ, "RAMET_HOME": str(home)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def outcome(child: subprocess.Popen[str], limit_s: float = 60) -> tuple[int, str, str]:
    try:
        out, err = child.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        child.kill()
        out, err = child.communicate()
        pytest.fail(f"{child.args!r} hung: {out!r} {err!r}")
    return child.returncode, out, err


async def test_two_execs_an_inspect_and_logs_from_four_processes(warm: ramet.VM, warm_home: Path) -> None:
    async with warm.fork(1, name="busy") as (vm,):
        await vm.exec("sh", "-c", "echo first line > /dev/console", check=True)
        logs = command(warm_home, "logs", "-f", "busy")
        slow = command(warm_home, "exec", "busy", "--", "sh", "-c", "echo begun; sleep 4; echo ended")
        quick = command(
            warm_home, "exec", "busy", "--", "sh", "-c", "echo quick; echo to the console > /dev/console"
        )
        inspect = command(warm_home, "inspect", "busy", "--json")
        code, out, err = await anyio.to_thread.run_sync(outcome, quick)
        assert (code, out, err) == (0, "quick\n", "")
        code, out, err = await anyio.to_thread.run_sync(outcome, inspect)
        assert code == 0, err
        shown = json.loads(out)
        assert shown["vmm_status"] == "running"
        assert shown["receipt"]["name"] == "busy"
        assert slow.poll() is None, "the long command still runs beside the others"
        assert (await anyio.to_thread.run_sync(outcome, slow))[:2] == (0, "begun\nended\n")
        await vm.stop()
        # The follower ends by itself once the instance has stopped, with everything that was said.
        code, out, err = await anyio.to_thread.run_sync(outcome, logs)
        assert code == 0, err
        assert "first line" in out
        assert "to the console" in out


async def test_six_processes_fork_one_template_at_once(warm: ramet.VM, warm_home: Path) -> None:
    children = [command(warm_home, "fork", "-n", "2", "--json", "warm") for _ in range(6)]
    reports = []
    for child in children:
        code, out, err = await anyio.to_thread.run_sync(outcome, child, 120)
        assert code == 0, err
        reports.append(json.loads(out))
    receipts = [fork for report in reports for fork in report["forks"]]
    assert len({receipt["name"] for receipt in receipts}) == 12
    assert len({receipt["identity"]["machine_id"] for receipt in receipts}) == 12
    assert len({receipt["identity"]["boot_random"] for receipt in receipts}) == 12
    assert {receipt["memory"]["inode"] for receipt in receipts} == {(warm.directory / "mem").stat().st_ino}
    code, out, err = await anyio.to_thread.run_sync(
        outcome, command(warm_home, "rm", "-f", "--json", *[receipt["name"] for receipt in receipts])
    )
    assert code == 0, err
    assert len(json.loads(out)["removed"]) == 12


async def test_one_name_many_callers(warm: ramet.VM, warm_home: Path) -> None:
    children = [command(warm_home, "fork", "-n", "1", "--name", "only", "--json", "warm") for _ in range(5)]
    codes = sorted([(await anyio.to_thread.run_sync(outcome, child, 120))[0] for child in children])
    assert codes == [0, 7, 7, 7, 7]
    done = await anyio.to_thread.run_sync(outcome, command(warm_home, "rm", "-f", "only"))
    assert done[0] == 0
