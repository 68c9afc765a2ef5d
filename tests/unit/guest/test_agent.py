"""The agent and its client against each other, without a VM. Sizes exceed every window and pipe."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.abc
import pytest

from ramet.errors import (
    ExecError,
    ExecNotExecutableError,
    ExecNotFoundError,
    GuestError,
    GuestTimeoutError,
    ProtocolError,
    UsageError,
)
from ramet.guest.client import AgentClient, run_exec
from ramet.guest.fields import put, put_number, put_text
from ramet.guest.framing import FrameDecoder, encode_frame
from ramet.guest.messages import STDIN_WINDOW_BYTES, ExecRequest, IdentityRequest, Message
from ramet.guest.ports import claim_port
from ramet.system.streams import connect_stream

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60), pytest.mark.usefixtures("agent_process")]


@asynccontextmanager
async def session(directory: Path) -> AsyncIterator[AgentClient]:
    async with (
        connect_stream(directory, "agent0.sock") as stream,
        AgentClient.connect(stream, timeout_s=5) as agent,
    ):
        yield agent


def sh(script: str, **options: object) -> ExecRequest:
    return ExecRequest(("/bin/sh", "-c", script), **options)  # type: ignore[arg-type]


async def until(condition: Callable[[], bool]) -> None:
    """For what the agent does on its own: there is no event to wait for outside it."""
    with anyio.fail_after(5):
        while not condition():
            await anyio.sleep(0.005)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_a_session_begins_and_answers(tmp_path: Path) -> None:
    async with session(tmp_path) as agent:
        assert agent.welcome.version == 1
        assert agent.welcome.ports == 1
        pong = await agent.ping()
        assert abs(pong.realtime_ns - time.time_ns()) < 1e9
        assert 0 < pong.round_trip_s < 1


async def test_output_exit_code_and_standard_input(tmp_path: Path) -> None:
    async with session(tmp_path) as agent:
        outcome = await run_exec(agent, sh("echo out; echo err >&2; cat; exit 7"), b"in")
        assert (outcome.stdout, outcome.stderr) == (b"out\nin", b"err\n")
        assert (outcome.exit_code, outcome.signal) == (7, None)
        outcome = await run_exec(agent, sh("cat; kill -TERM $$"))
        assert (outcome.exit_code, outcome.signal, outcome.stdout) == (None, signal.SIGTERM, b"")


async def test_environment_directory_and_user(tmp_path: Path) -> None:
    async with session(tmp_path) as agent:
        show = 'pwd; echo "$HOME $USER $LANG $PATH $A"; cut -d" " -f6 /proc/$$/stat; echo $$'
        outcome = await run_exec(agent, sh(show, env={"A": "x y", "LANG": "C"}, cwd="/usr"))
        cwd, variables, group, pid = outcome.stdout.decode().splitlines()
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        assert cwd == "/usr"
        assert variables.endswith(f" C {path} x y")
        assert group == pid
        if os.getuid() == 0:
            outcome = await run_exec(agent, sh("id -u; id -g", user="65534:12"))
            assert outcome.stdout == b"65534\n12\n"
            outcome = await run_exec(agent, sh("id -un; echo $HOME; pwd", user="daemon"))
            assert outcome.stdout == b"daemon\n/usr/sbin\n/usr/sbin\n"


async def test_a_command_starts_with_default_signals_and_no_foreign_descriptors(tmp_path: Path) -> None:
    async with session(tmp_path) as agent:
        outcome = await run_exec(agent, sh("grep -E 'SigBlk|SigIgn' /proc/self/status; ls /proc/self/fd"))
        _, blocked, _, ignored, *descriptors = outcome.stdout.split()
        # 32 to 34 belong to the C library, which lets nobody set them: they come as this machine's shells
        # leave them.
        own = ~(0b111 << 31)
        assert int(blocked, 16) & own == int(ignored, 16) & own == 0
        assert descriptors == [b"0", b"1", b"2", b"3"]


async def test_what_cannot_be_started_says_why(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("no program")
    async with session(tmp_path) as agent:
        with pytest.raises(ExecNotFoundError, match="no-such-program"):
            await run_exec(agent, ExecRequest(("no-such-program",)))
        with pytest.raises(ExecNotExecutableError, match="Permission denied"):
            await run_exec(agent, ExecRequest((str(plain),)))
        plain.chmod(0o755)
        with pytest.raises(ExecNotExecutableError, match="Exec format"):
            await agent.spawn(ExecRequest((str(plain),)))
        with pytest.raises(ExecError, match="chdir /no/such") as caught:
            await run_exec(agent, ExecRequest(("true",), cwd="/no/such"))
        assert type(caught.value) is ExecError  # the program isn't what is missing
        with pytest.raises(ExecError, match="no such user: nobody-of-that-name"):
            await run_exec(agent, ExecRequest(("true",), user="nobody-of-that-name"))
        with pytest.raises(UsageError, match="standard input"):
            await run_exec(agent, ExecRequest(("echo", "x" * 70_000)))
        assert await agent.processes() == []
        assert (await run_exec(agent, sh("echo fine"))).stdout == b"fine\n"


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_large_data_goes_both_ways_unharmed(tmp_path: Path) -> None:
    data = os.urandom(1 << 20) * 50 + b"end"
    async with session(tmp_path) as agent:
        outcome = await run_exec(agent, ExecRequest(("cat",)), data)
        assert hashlib.sha256(outcome.stdout).digest() == hashlib.sha256(data).digest()


async def test_many_commands_at_once(tmp_path: Path) -> None:
    results: dict[int, bytes] = {}
    async with session(tmp_path) as agent:

        async def one(number: int) -> None:
            data = str(number).encode() * 50_000
            results[number] = (await run_exec(agent, ExecRequest(("cat",)), data)).stdout
            assert results[number] == data

        async with anyio.create_task_group() as tasks:
            for number in range(40):
                tasks.start_soon(one, number)
        assert len(results) == 40
        assert await agent.processes() == []


async def test_a_slow_reader_stops_nobody_else(tmp_path: Path) -> None:
    async with session(tmp_path) as agent, agent.start(sh("yes")) as slow:
        for _ in range(5):
            quick = await run_exec(agent, sh("head -c 3000000 /dev/zero"))
            assert len(quick.stdout) == 3_000_000
        assert slow.pid in {process.pid for process in await agent.processes()}
        await agent.ping(timeout_s=2)
        total = 0
        async for chunk in slow.output():
            total += len(chunk.data)
            if total > 2_000_000:
                break


@pytest.mark.timing
async def test_a_command_that_does_not_read_stops_nobody_else(tmp_path: Path) -> None:
    async with session(tmp_path) as agent:
        async with agent.start(sh("sleep 60", stdin_open=True)) as deaf:
            with anyio.move_on_after(0.3) as writing:
                await deaf.write(bytes(10_000_000))
            assert writing.cancelled_caught
            await agent.ping(timeout_s=2)
        assert await agent.processes() == []
        # Input that nobody reads any more is dropped, so that its sender isn't left waiting.
        outcome = await run_exec(agent, sh("exec <&-; sleep 0.2; echo done"), bytes(5_000_000))
        assert outcome.stdout == b"done\n"
        assert (await run_exec(agent, sh("exit 3"), bytes(5_000_000))).exit_code == 3


@pytest.mark.timing
async def test_a_time_limit_kills_the_group(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    async with session(tmp_path) as agent:
        began = time.monotonic()
        async with agent.start(sh(f"sleep 60 & echo $! $$ > {pids}; wait", timeout_s=0.3)) as process:
            end = await process.wait()
        assert (end.signal, end.timed_out) == (signal.SIGKILL, True)
        assert 0.25 < time.monotonic() - began < 5
    for pid in map(int, pids.read_text().split()):
        await until(lambda pid=pid: not alive(pid))  # type: ignore[misc]


async def test_signals_reach_the_group(tmp_path: Path) -> None:
    async with session(tmp_path) as agent:
        async with agent.start(sh("trap 'echo got; exit 5' TERM; echo ready; sleep 60 & wait")) as process:
            output = process.output()
            assert (await anext(output)).data == b"ready\n"
            await process.signal(signal.SIGTERM)
            assert (await anext(output)).data == b"got\n"
            assert (await process.wait()).exit_code == 5
        with pytest.raises(UsageError):
            await process.signal(65)


@pytest.mark.timing
async def test_leaving_early_kills_and_cancellation_too(tmp_path: Path) -> None:
    async with session(tmp_path) as agent:
        with pytest.raises(ZeroDivisionError):
            async with agent.start(sh("yes; sleep 60")) as process:
                raise ZeroDivisionError
        assert not alive(process.pid)
        with anyio.move_on_after(0.2) as scope:
            async with agent.start(sh("sleep 60")) as process:
                await process.wait()
        assert scope.cancelled_caught
        assert not alive(process.pid)
        assert await agent.processes() == []


async def test_too_much_output_is_an_error_and_kills(tmp_path: Path) -> None:
    async with session(tmp_path) as agent:
        with pytest.raises(GuestError, match="wrote more than 1000000 bytes"):
            await run_exec(agent, sh("yes"), max_output_bytes=1_000_000)
        with pytest.raises(GuestError, match="wrote more than"):
            await run_exec(agent, sh("cat; yes"), b"x", max_output_bytes=1_000_000)
        assert await agent.processes() == []


@pytest.mark.timing
async def test_a_background_child_with_the_pipe_open_is_not_waited_for(tmp_path: Path) -> None:
    async with session(tmp_path) as agent:
        began = time.monotonic()
        outcome = await run_exec(agent, sh("head -c 50000 /dev/zero; sleep 3 & exit 0"))
        assert len(outcome.stdout) == 50_000
        assert time.monotonic() - began < 2.5


@pytest.mark.timing
async def test_detached_commands_live_on_and_are_listed(tmp_path: Path) -> None:
    async with session(tmp_path) as agent:
        pid = await agent.spawn(ExecRequest(("sleep", "60")))
    async with session(tmp_path) as agent:
        (process,) = await agent.processes()
        assert (process.pid, process.argv) == (pid, ("sleep", "60"))
        assert (process.detached, process.orphaned) == (True, False)
        os.kill(pid, signal.SIGKILL)
        with anyio.fail_after(5):
            while await agent.processes():  # until the agent has reaped it
                pass


async def test_orphans_neither_block_nor_die(tmp_path: Path) -> None:
    done = tmp_path / "done"
    async with connect_stream(tmp_path, "agent0.sock") as stream:
        script = sh(f"cat; head -c 3000000 /dev/zero; echo $? > {done}; exec sleep 60")
        async with AgentClient.connect(stream) as agent:
            manager = agent.start(ExecRequest(script.argv, stdin_open=True))
            pid = (await manager.__aenter__()).pid
    await until(lambda: done.exists() and done.read_text() == "0\n")
    async with session(tmp_path) as agent:
        (process,) = await agent.processes()
        assert (process.pid, process.orphaned, process.detached) == (pid, True, False)
        os.kill(pid, signal.SIGKILL)


async def test_a_new_session_on_the_same_stream_orphans_the_old(tmp_path: Path) -> None:
    async with connect_stream(tmp_path, "agent0.sock") as stream:
        async with AgentClient.connect(stream) as first:
            await first._connection.send(Message.EXEC, 77, sh("yes").encode())
            await first.ping()
        # Half a frame, as a fork leaves it: the next session has to be found behind it.
        await stream.send(encode_frame(Message.PING, 5, b"x" * 200)[:100])
        async with AgentClient.connect(stream) as second:
            (process,) = await second.processes()
            assert process.orphaned
            await second.ping()
            os.kill(process.pid, signal.SIGKILL)


async def test_sessions_at_once_do_not_mix(tmp_path: Path) -> None:
    async with session(tmp_path) as one, session(tmp_path) as two:
        assert two.welcome.ports == 2
        async with one.start(sh("cat", stdin_open=True)) as process:
            assert (await run_exec(two, sh("echo two"))).stdout == b"two\n"
            await process.write(b"one")
            await process.close_stdin()
            assert [chunk.data async for chunk in process.output()] == [b"one"]


async def test_there_is_an_end_to_commands(tmp_path: Path) -> None:
    async with session(tmp_path) as agent:
        async with anyio.create_task_group() as tasks:
            started = 0

            async def hold(*, task_status: anyio.abc.TaskStatus[None]) -> None:
                async with agent.start(ExecRequest(("sleep", "60"))):
                    task_status.started()
                    await anyio.sleep_forever()

            for _ in range(64):
                await tasks.start(hold)
                started += 1
            with pytest.raises(ExecError, match="too many"):
                await run_exec(agent, sh("true"))
            tasks.cancel_scope.cancel()
        assert started == 64
        assert await agent.processes() == []


async def test_an_agent_on_a_socket_leaves_its_machine_alone(tmp_path: Path) -> None:
    async with session(tmp_path) as agent:
        with pytest.raises(GuestError, match="doesn't own its machine"):
            await agent.identity(IdentityRequest(1, bytes(32), "h", "0" * 32))
        with pytest.raises(GuestError, match="doesn't own its machine"):
            await agent.shutdown()
        await agent.ping()


async def test_an_agent_that_ends_is_told_to_everyone(
    tmp_path: Path, agent_process: subprocess.Popen[bytes]
) -> None:
    async with session(tmp_path) as agent, agent.start(sh("sleep 60")) as process:
        agent_process.kill()
        with pytest.raises(GuestError, match="ended while '/bin/sh' ran"):
            await process.wait()
        with pytest.raises(GuestError):
            await agent.ping()
        os.kill(process.pid, signal.SIGKILL)


async def test_an_agent_that_hangs_is_a_timeout(
    tmp_path: Path, agent_process: subprocess.Popen[bytes]
) -> None:
    async with session(tmp_path) as agent:
        agent_process.send_signal(signal.SIGSTOP)
        with pytest.raises(GuestTimeoutError, match="a ping within"):
            await agent.ping(timeout_s=0.2)
        agent_process.send_signal(signal.SIGCONT)
        await agent.ping()


async def test_bad_frames_harm_nothing(tmp_path: Path, agent_process: subprocess.Popen[bytes]) -> None:
    exec_ = [
        b"",
        b"\x01\xff\xff\xff\xff",
        put_text(2, "A=B"),
        put_text(1, "true") + put(2, b"=x"),
        put(1, b"a\0b"),
        put_text(1, "true") + put_number(6, 2, 1),
        b"\x01" * 65_536,
    ]
    async with session(tmp_path) as agent:
        for number, payload in enumerate(exec_, start=1000):
            await agent._connection.send(Message.EXEC, number, payload)
        for kind in range(256):
            if kind not in (Message.HELLO, Message.SHUTDOWN, Message.IDENTITY):
                await agent._connection.send(kind, 2000, os.urandom(300))  # type: ignore[arg-type]
        await agent._connection._stream.send(os.urandom(100_000) + b"\x7e" + b"\x7d\x7e" + b"y" * 300_000)
        await agent.ping()
        assert agent_process.poll() is None
        assert await agent.processes() == []


async def test_more_input_than_granted_ends_the_stream(tmp_path: Path) -> None:
    async with session(tmp_path) as agent, agent.start(sh("sleep 60", stdin_open=True)) as process:
        process._stream._stdin_credit = -(2**40)  # so that the client takes the grants without a word
        for _ in range(3):  # one into the pipe, one held by the agent, one too many
            await agent._connection.send(Message.STDIN, process._stream._number, bytes(STDIN_WINDOW_BYTES))
        with pytest.raises(ExecError, match="more stdin than was granted"):
            await process.wait()
        await until(lambda: not alive(process.pid))


@pytest.mark.timing
async def test_an_idle_agent_uses_no_processor(
    tmp_path: Path, agent_process: subprocess.Popen[bytes]
) -> None:
    def switches() -> int:
        status = Path(f"/proc/{agent_process.pid}/status").read_text()
        return sum(int(line.split()[1]) for line in status.splitlines() if "ctxt_switches" in line)

    async with session(tmp_path) as agent, agent.start(sh("yes")):
        await agent.ping()
        await anyio.sleep(0.2)  # until the window is full
        before = switches()
        await anyio.sleep(0.5)
        assert switches() - before <= 2


# --- a guest that doesn't keep to the protocol ------------------------------------------------------------


@asynccontextmanager
async def hostile(answers: bytes) -> AsyncIterator[AgentClient]:
    """A session with a guest that answers the first request with `answers`."""
    near, far = socket_pair()
    async with (
        await anyio.abc.UNIXSocketStream.from_socket(near) as stream,
        await anyio.abc.UNIXSocketStream.from_socket(far) as guest,
        anyio.create_task_group() as tasks,
    ):

        async def serve() -> None:
            decoder = FrameDecoder()
            while True:
                for frame in decoder.feed(await guest.receive()):
                    if frame.type == Message.HELLO:
                        welcome = put(1, frame.payload[5:21]) + put_number(2, 2, 1) + put_text(3, "evil")
                        rest = put_number(4, 8, 0) + put_number(5, 2, 1)
                        await guest.send(encode_frame(Message.WELCOME, 0, welcome + rest))
                    elif frame.stream == 1:
                        await guest.send(answers)

        async def serve_to_the_end() -> None:
            try:
                await serve()
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                pass

        tasks.start_soon(serve_to_the_end)
        async with AgentClient.connect(stream) as agent:
            yield agent
        tasks.cancel_scope.cancel()


def socket_pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


STARTED = encode_frame(Message.STARTED, 1, put_number(1, 4, 5))


@pytest.mark.parametrize(
    "answers",
    [
        STARTED + encode_frame(Message.STDOUT, 1, bytes(65_536)) * 5,
        STARTED + encode_frame(Message.EXIT, 1, b""),
        STARTED + encode_frame(Message.STDIN_CREDIT, 1, put_number(1, 4, 2**31)),
        encode_frame(Message.STARTED, 1, b"\x01\xff"),
        encode_frame(Message.PONG, 1, b""),
        encode_frame(Message.ERROR, 1, b"\x07"),
    ],
)
async def test_a_breach_of_the_protocol_closes_the_connection(answers: bytes) -> None:
    async with hostile(answers) as agent:
        with pytest.raises(ProtocolError):
            async with agent.start(sh("x")) as process:
                await process.wait()
        with pytest.raises(ProtocolError):
            await agent.ping()


async def test_frames_of_unknown_streams_are_ignored() -> None:
    noise = (
        encode_frame(Message.STDOUT, 999, b"x") + encode_frame(0xEE, 7, b"") + encode_frame(0x82, 0, b"zz")
    )
    over = encode_frame(Message.EXIT, 1, put_number(1, 4, 0))
    async with hostile(noise + STARTED + over) as agent:
        assert (await run_exec(agent, sh("x"))).exit_code == 0


async def test_no_agent_is_a_timeout_that_says_so() -> None:
    near, far = socket_pair()
    with far:
        stream = await anyio.abc.UNIXSocketStream.from_socket(near)
        with pytest.raises(GuestTimeoutError, match="no agent answered"):
            async with stream, AgentClient.connect(stream, timeout_s=0.3, resend_s=0.05):
                pass


async def test_a_claimed_port_serves_a_session(tmp_path: Path) -> None:
    async with claim_port(tmp_path, 1, 1) as stream, AgentClient.connect(stream) as agent:
        await agent.ping()
