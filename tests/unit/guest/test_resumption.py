"""Sessions that go on over another connection: the real agent, and a connection cut at any place."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ramet.errors import GuestLostError, ProtocolError
from ramet.guest import resumption
from ramet.guest.client import AgentClient, run_exec
from ramet.guest.messages import ExecRequest, Message
from ramet.guest.resumption import Outbox, Patience

from .cutter import Cutter

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120), pytest.mark.usefixtures("agent_process")]


@asynccontextmanager
async def session(
    directory: Path, budgets: Iterator[int] | None = None
) -> AsyncIterator[tuple[AgentClient, Cutter]]:
    cutter = Cutter(directory / "agent0.sock", budgets or iter(()))
    async with (
        cutter.open() as stream,
        AgentClient.connect(stream, timeout_s=5, reopen=cutter.open) as agent,
    ):
        yield agent, cutter


def sh(script: str, **options: object) -> ExecRequest:
    return ExecRequest(("/bin/sh", "-c", script), **options)  # type: ignore[arg-type]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "step", [pytest.param(7, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.deep)]
)
async def test_cut_at_every_byte_of_a_small_exchange(tmp_path: Path, step: int) -> None:
    """EXEC, STARTED, input, both outputs, the end: in the middle of frames, and between any two."""
    begun = tmp_path / "begun"
    script = sh(f"echo >> {begun}; read line; echo ~out $line; echo }}err >&2; cat; exit 7")
    at, cuts = 0, 0
    while True:
        begun.write_text("")
        async with session(tmp_path) as (agent, cutter):
            cutter.cut(1 + at)
            outcome = await run_exec(agent, script, b"line\nand ~}~ more\n")
            assert outcome.stdout == b"~out line\nand ~}~ more\n"
            assert outcome.stderr == b"}err\n"
            assert outcome.exit_code == 7
            cuts += cutter.made - 1
            if cutter.made == 1:
                break
        assert begun.read_text() == "\n"  # started once
        at += step
    # All of it: EXEC alone has a hundred bytes.
    assert cuts == at // step > 250 // step


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_many_cuts_lose_double_and_reorder_nothing(tmp_path: Path) -> None:
    rng = random.Random(4)
    data = rng.randbytes(4_000_000) + b"~}" * 100_000
    budgets = (rng.choice((300, 3_000, 40_000, 200_000)) + rng.randrange(3_000) for _ in itertools.count())
    async with session(tmp_path, budgets) as (agent, cutter):
        cutter.cut(1000)
        outcome = await run_exec(agent, sh("tee /dev/stderr | cat; exit 9"), data)
        want = hashlib.sha256(data).digest()
        assert hashlib.sha256(outcome.stdout).digest() == want
        assert hashlib.sha256(outcome.stderr).digest() == want
        assert outcome.exit_code == 9
        assert cutter.made > 30
        assert agent._connection._outbox.kept_bytes < 300_000


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(st.integers(0, 3000), min_size=1, max_size=8), st.integers(0, 60_000), st.integers(0, 60_000))
def test_wherever_it_is_cut(tmp_path: Path, budgets: list[int], given_bytes: int, made_bytes: int) -> None:
    async def run() -> None:
        async with session(tmp_path, iter(budgets[1:])) as (agent, cutter):
            cutter.cut(1 + budgets[0])
            data = random.Random(given_bytes).randbytes(given_bytes)
            script = sh(f"sha256sum >&2; head -c {made_bytes} /dev/zero; kill -TERM $$")
            outcome = await run_exec(agent, script, data)
            assert outcome.stderr.split()[0].decode() == hashlib.sha256(data).hexdigest()
            assert outcome.stdout == bytes(made_bytes)
            assert outcome.signal == signal.SIGTERM

    anyio.run(run)


@pytest.mark.slow
@pytest.mark.timing
async def test_several_clients_with_several_commands_each(tmp_path: Path) -> None:
    """All connections of a guest are reset at once, again and again."""
    cutters: list[Cutter] = []
    checked: list[int] = []

    async def client(number: int) -> None:
        async with session(tmp_path) as (agent, cutter), anyio.create_task_group() as tasks:
            cutters.append(cutter)
            for part in range(4):
                tasks.start_soon(command, agent, 10 * number + part)

    async def command(agent: AgentClient, name: int) -> None:
        data = str(name).encode() * 400_000
        outcome = await run_exec(agent, sh(f"cat; sleep 0.{name % 4}; exit {name}"), data)
        assert outcome.stdout == data
        assert outcome.exit_code == name
        checked.append(name)

    async with anyio.create_task_group() as tasks:
        for number in range(10):
            tasks.start_soon(client, number)
        for _ in range(20):
            await anyio.sleep(0.03)
            for cutter in cutters:
                cutter.cut()
    assert len(checked) == 40
    assert sum(cutter.made for cutter in cutters) > 40


@pytest.mark.timing
async def test_requests_survive_too(tmp_path: Path) -> None:
    async with session(tmp_path) as (agent, cutter):
        for at in range(1, 200, 7):
            cutter.cut(at)
            await agent.ping()
            pid = await agent.spawn(ExecRequest(("sleep", "60")))
            assert [process.pid for process in await agent.processes()] == [pid]
            os.kill(pid, signal.SIGKILL)
            with anyio.fail_after(5):
                while await agent.processes():
                    await anyio.sleep(0.01)
        assert cutter.made > 10


@pytest.mark.timing
async def test_a_cut_that_only_the_guest_sees_is_found_out(tmp_path: Path) -> None:
    """As when Firecracker's guest resets its connections: nothing comes any more, and nothing says so."""
    async with session(tmp_path) as (agent, cutter):
        cutter.deaf = True
        async with agent.start(sh("sleep 0.5; echo later; exec sleep 60")) as process:
            await anyio.sleep(0.1)
            cutter.cut()
            with anyio.fail_after(10):
                assert (await anext(process.output())).data == b"later\n"
        cutter.cut()
        agent.probe_liveness()
        await agent.ping()
        assert cutter.made == 3


@pytest.mark.timing
async def test_a_question_that_was_lost_with_the_connection_is_asked_again(tmp_path: Path) -> None:
    """A guest may have taken it, and reset its connections before it could answer."""
    async with session(tmp_path) as (agent, cutter):
        cutter.deaf, cutter.lost = True, 2
        async with agent.start(sh("sleep 0.5; echo later; exec sleep 60")) as process:
            await anyio.sleep(0.1)
            cutter.cut()
            with anyio.fail_after(30):
                assert (await anext(process.output())).data == b"later\n"
        assert cutter.made == 2


@pytest.mark.timing
async def test_output_goes_on_while_nobody_is_there_and_waits_when_it_is_much(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    gate = anyio.Event()

    async with session(tmp_path) as (agent, cutter):
        opened = cutter.open

        @asynccontextmanager
        async def later() -> AsyncIterator[anyio.abc.ByteStream]:
            await gate.wait()
            async with opened() as stream:
                yield stream

        agent._connection._reopen = later
        script = f"echo a; sleep 0.3; echo b; touch {mark}; head -c 3000000 /dev/zero; touch {mark}2"
        async with agent.start(sh(script)) as process:
            output = process.output()
            assert (await anext(output)).data == b"a\n"
            cutter.cut()
            with anyio.fail_after(5):
                while not mark.exists():
                    await anyio.sleep(0.01)
            await anyio.sleep(0.3)
            assert not Path(f"{mark}2").exists()
            gate.set()
            got = b"".join([chunk.data async for chunk in output])
            assert got == b"b\n" + bytes(3_000_000)
            assert (await process.wait()).exit_code == 0


async def test_a_client_without_a_second_connection_orphans_at_once(tmp_path: Path) -> None:
    """As before there was resumption: what it left behind isn't waited for."""
    cutter = Cutter(tmp_path / "agent0.sock", iter(()))
    async with cutter.open() as stream, AgentClient.connect(stream) as agent:
        with pytest.raises(GuestLostError, match="ran"):
            async with agent.start(sh("sleep 60")) as process:
                cutter.cut()
                await process.wait()
    async with session(tmp_path) as (agent, _):
        (left,) = await agent.processes()
        assert left.orphaned
        os.kill(left.pid, signal.SIGKILL)


@pytest.mark.timing
async def test_leaving_says_goodbye(tmp_path: Path) -> None:
    """Nobody waits for a client that left in order: its commands are orphans at once, its port is free."""
    for _ in range(20):
        async with session(tmp_path) as (agent, _):
            manager = agent.start(sh("exec sleep 60"))
            process = await manager.__aenter__()
        async with session(tmp_path) as (agent, _):
            assert [process.orphaned for process in await agent.processes()] == [True]
            assert agent.welcome.ports <= 2  # the last one may not have been seen off
            os.kill(process.pid, signal.SIGKILL)
            with anyio.fail_after(5):
                while await agent.processes():
                    await anyio.sleep(0.005)


async def test_those_who_never_come_back_make_room(tmp_path: Path) -> None:
    """Killed clients leave sessions that are waited for; newer clients are let in all the same."""
    left = []
    for _ in range(40):
        cutter = Cutter(tmp_path / "agent0.sock", iter(()))
        async with cutter.open() as stream, AgentClient.connect(stream, reopen=cutter.open) as agent:
            manager = agent.start(sh("exec sleep 60"))
            left.append((await manager.__aenter__()).pid)
            agent._connection._reopen = None  # it is killed
            cutter.cut()
    async with session(tmp_path) as (agent, _):
        listed = {process.pid: process.orphaned for process in await agent.processes()}
        assert sorted(listed) == sorted(left)
        assert not listed[left[-1]]
        assert listed[left[0]]
        for pid in left:
            os.kill(pid, signal.SIGKILL)


async def test_another_token_or_an_impossible_count_begins_anew(tmp_path: Path) -> None:
    for breach in ("token", "count"):
        async with session(tmp_path) as (agent, cutter):
            with pytest.raises(GuestLostError, match="knows nothing of its session"):
                async with agent.start(sh("exec sleep 60")) as process:
                    if breach == "token":
                        agent._connection._token = bytes(16)
                    else:
                        agent._connection._received = 1000
                    cutter.cut()
                    await process.wait()
            await agent.ping()
            for orphan in await agent.processes():
                os.kill(orphan.pid, signal.SIGKILL)


@pytest.mark.timing
async def test_an_agent_that_is_gone_is_given_up(
    tmp_path: Path, agent_process: subprocess.Popen[bytes]
) -> None:
    async with session(tmp_path) as (agent, _), agent.start(sh("echo $$; exec sleep 60")) as process:
        began = time.monotonic()
        agent_process.kill()
        with pytest.raises(GuestLostError, match="ran"):
            await process.wait()
        assert time.monotonic() - began < resumption.RESUME_LIMIT_S
        with suppress(ProcessLookupError):  # its standard input has ended with the agent, too
            os.kill(process.pid, signal.SIGKILL)


async def test_a_killed_command_dies_across_a_cut(tmp_path: Path) -> None:
    async with session(tmp_path) as (agent, cutter):
        async with agent.start(sh("yes")) as process:
            await anext(process.output())
            cutter.cut()
        assert not alive(process.pid)
        assert await agent.processes() == []


@pytest.mark.timing
async def test_the_agent_is_idle_while_it_waits(
    tmp_path: Path, agent_process: subprocess.Popen[bytes]
) -> None:
    def switches() -> int:
        status = Path(f"/proc/{agent_process.pid}/status").read_text()
        return sum(int(line.split()[1]) for line in status.splitlines() if "ctxt_switches" in line)

    cutter = Cutter(tmp_path / "agent0.sock", iter(()))
    async with cutter.open() as stream, AgentClient.connect(stream, reopen=cutter.open) as agent:
        manager = agent.start(sh("yes"))
        pid = (await manager.__aenter__()).pid
        agent._connection._reopen = None
        cutter.cut()
        await anyio.sleep(0.5)  # until what it keeps is full
        before = switches()
        await anyio.sleep(0.5)
        assert switches() - before <= 3
        os.kill(pid, signal.SIGKILL)


def test_an_outbox_believes_no_impossible_count() -> None:
    outbox = Outbox()
    for _ in range(3):
        outbox.add(b"frame")
    outbox.acknowledge(2)
    assert outbox.frames() == [b"frame"]
    for count in (1, 4, 2**64 - 1):
        with pytest.raises(ProtocolError):
            outbox.acknowledge(count)
    outbox.take_back()
    outbox.acknowledge(2)
    assert outbox.kept_bytes == 0
    with pytest.raises(ProtocolError, match="acknowledged none"):
        while True:
            outbox.add(bytes(1 << 20))


def test_patience_ends() -> None:
    patience = Patience()
    pauses = list(iter(patience.next_pause_s, None))
    assert 5 < len(pauses) < 50
    patience.ended(seconds=0.01, welcomed=True)
    assert patience.next_pause_s() == pytest.approx(0.005)
    patience.ended(seconds=10, welcomed=True)
    assert patience.next_pause_s() == 0


def test_what_belongs_to_a_connection_is_not_counted() -> None:
    connections = {kind for kind in Message if not resumption.is_counted(kind)}
    assert connections == {Message.HELLO, Message.WELCOME, Message.ACK, Message.ACKED, Message.BYE}
