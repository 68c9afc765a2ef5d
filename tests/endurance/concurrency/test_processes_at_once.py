"""Several ramet processes on one home and one instance."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeAlias

import pytest

import ramet
from ramet.model import protocols
from tests.support.shell import run_command

pytestmark = [pytest.mark.vm, pytest.mark.anyio]

Outcome: TypeAlias = tuple[int, str, str]
"""Exit code, standard output and standard error."""
Command: TypeAlias = Callable[..., Future[Outcome]]


@pytest.fixture
def command(warm_home: Path) -> Iterator[Command]:
    """Begins a `ramet` command on the warm home, in a process of its own whose imports are done."""
    environment = {**os.environ, "RAMET_HOME": str(warm_home)}

    def run(*words: str) -> Outcome:
        done = run_command(words, environment)
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    with ThreadPoolExecutor(8) as threads:
        yield partial(threads.submit, run)


async def outcome(begun: Future[Outcome]) -> Outcome:
    return await asyncio.wrap_future(begun)


async def test_two_execs_an_inspect_and_logs_from_four_processes(
    warm: protocols.VM, command: Command
) -> None:
    async with warm.fork(1, name="busy") as (vm,):
        await vm.exec("sh", "-c", "echo first line > /dev/console", check=True)
        logs = command("logs", "-f", "busy")
        wait = "echo begun; until [ -e /tmp/over ]; do sleep 0.1; done; echo ended"
        slow = command("exec", "busy", "--", "sh", "-c", wait)
        quick = command("exec", "busy", "--", "sh", "-c", "echo quick; echo to the console > /dev/console")
        inspect = command("inspect", "busy", "--json")
        code, out, err = await outcome(quick)
        assert (code, out, err) == (0, "quick\n", "")
        code, out, err = await outcome(inspect)
        assert code == 0, err
        shown = json.loads(out)
        assert shown["vmm_status"] == "running"
        assert shown["receipt"]["name"] == "busy"
        assert not slow.done(), "the long command still runs beside the others"
        await vm.exec("touch", "/tmp/over", check=True)
        assert (await outcome(slow))[:2] == (0, "begun\nended\n")
        await vm.stop()
        # The follower ends by itself once the instance has stopped, with everything that was said.
        code, out, err = await outcome(logs)
        assert code == 0, err
        assert "first line" in out
        assert "to the console" in out


async def test_six_processes_fork_one_template_at_once(warm: ramet.VM, command: Command) -> None:
    children = [command("fork", "-n", "2", "--json", "warm") for _ in range(6)]
    reports = []
    for child in children:
        code, out, err = await outcome(child)
        assert code == 0, err
        reports.append(json.loads(out))
    receipts = [fork for report in reports for fork in report["forks"]]
    assert len({receipt["name"] for receipt in receipts}) == 12
    assert len({receipt["identity"]["machine_id"] for receipt in receipts}) == 12
    assert len({receipt["identity"]["boot_random"] for receipt in receipts}) == 12
    assert {receipt["memory"]["inode"] for receipt in receipts} == {(warm.directory / "mem").stat().st_ino}
    code, out, err = await outcome(command("rm", "-f", "--json", *[receipt["name"] for receipt in receipts]))
    assert code == 0, err
    assert len(json.loads(out)["removed"]) == 12


async def test_one_name_many_callers(warm: protocols.VM, command: Command) -> None:
    children = [command("fork", "-n", "1", "--name", "only", "--json", "warm") for _ in range(5)]
    codes = sorted([(await outcome(child))[0] for child in children])
    assert codes == [0, 7, 7, 7, 7]
    done = await outcome(command("rm", "-f", "only"))
    assert done[0] == 0
