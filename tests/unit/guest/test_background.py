"""Children that commands leave in the background: they go on, with nobody to read what they write."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import anyio
import pytest

from ramet.guest.client import run_exec
from ramet.guest.messages import ExecRequest

from .test_agent import alive, session, sh, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

TICKS = "i=0; while [ -e {go} ]; do i=$((i+1)); echo tick; echo err >&2; echo $i > {mark}; sleep 0.02; done"


def script(directory: Path) -> tuple[str, Callable[[], int]]:
    """A loop that writes to both its streams, and how far it has come."""
    (directory / "go").touch()
    mark = directory / "mark"
    mark.write_text("0\n")
    return TICKS.format(go=directory / "go", mark=mark), lambda: int(mark.read_text() or "0")


async def goes_on(directory: Path, count: Callable[[], int]) -> None:
    reached = count()
    await until(lambda: count() > reached + 5)
    (directory / "go").unlink()


async def test_a_child_in_the_background_outlives_its_command(
    tmp_path: Path, agent_process: subprocess.Popen[bytes]
) -> None:
    loop, count = script(tmp_path)
    async with session(tmp_path) as agent:
        outcome = await run_exec(agent, sh(f"({loop}) & echo started"))
        assert outcome.exit_code == 0
        assert outcome.stdout.startswith(b"started\n") or b"\nstarted\n" in outcome.stdout
        await goes_on(tmp_path, count)
    await until(lambda: pipes_of(agent_process.pid) == 0)


async def test_that_of_a_command_whose_client_has_gone_does_too(
    tmp_path: Path, agent_process: subprocess.Popen[bytes]
) -> None:
    loop, count = script(tmp_path)
    async with session(tmp_path) as agent, agent.start(sh(f"({loop}) & wait")) as process:
        pid = process.pid
        await agent._connection._stream.aclose()
    await until(lambda: count() > 0)
    os.kill(pid, signal.SIGKILL)  # the command alone: the loop is left
    await until(lambda: not alive(pid))
    await goes_on(tmp_path, count)
    await until(lambda: pipes_of(agent_process.pid) == 0)


async def test_one_that_writes_without_end_holds_nobody_up(
    tmp_path: Path, agent_process: subprocess.Popen[bytes]
) -> None:
    async with session(tmp_path) as agent:
        outcome = await run_exec(agent, sh("yes & echo $!; sleep 0.1"))
        yes = next(int(line) for line in outcome.stdout.split(b"\n") if line.isdigit())
        try:
            for _ in range(20):
                assert (await run_exec(agent, sh("echo fine"))).stdout == b"fine\n"
            assert alive(yes)
        finally:
            os.kill(yes, signal.SIGKILL)
    await until(lambda: pipes_of(agent_process.pid) == 0)


@pytest.mark.slow
@pytest.mark.timing
async def test_hundreds_are_kept_beside_other_commands(
    tmp_path: Path, agent_process: subprocess.Popen[bytes]
) -> None:
    sleepers: list[int] = []
    async with session(tmp_path) as agent:
        try:
            for _ in range(300):
                sleepers.append(int((await run_exec(agent, sh("sleep 300 & echo $!"))).stdout))
            assert pipes_of(agent_process.pid) == 600
            assert (await run_exec(agent, sh("echo fine"))).stdout == b"fine\n"
            assert all(map(alive, sleepers))
        finally:
            for pid in sleepers:
                os.kill(pid, signal.SIGKILL)
    with anyio.fail_after(30):
        while pipes_of(agent_process.pid) > 0:
            await anyio.sleep(0.05)


async def test_input_ends_with_the_command(tmp_path: Path, agent_process: subprocess.Popen[bytes]) -> None:
    done = tmp_path / "done"
    async with session(tmp_path) as agent:
        outcome = await run_exec(agent, sh(f"(cat > /dev/null; echo > {done}) <&0 & echo started"), b"some")
        assert outcome.stdout == b"started\n"
        await until(done.exists)


def pipes_of(pid: int) -> int:
    kinds = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed since
            kinds.append(str(descriptor.readlink()))
    return sum(kind.startswith("pipe:") for kind in kinds)


@pytest.mark.slow
@pytest.mark.timing
async def test_time_in_which_the_guest_stood_still_is_not_the_commands(
    tmp_path: Path, agent_process: subprocess.Popen[bytes]
) -> None:
    """As in a VM whose clock jumps when it goes on: the agent can't run meanwhile, and its clock can."""
    async with session(tmp_path) as agent:
        request = ExecRequest(("/bin/sh", "-c", "sleep 1; echo done"), timeout_s=3)
        async with agent.start(request) as process:
            agent_process.send_signal(signal.SIGSTOP)
            await anyio.sleep(4)
            agent_process.send_signal(signal.SIGCONT)
            assert b"".join([chunk.data async for chunk in process.output()]) == b"done\n"
            assert not (await process.wait()).timed_out
        async with agent.start(ExecRequest(("sleep", "60"), timeout_s=1)) as process:
            assert (await process.wait()).timed_out
