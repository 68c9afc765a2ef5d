"""The probe in a real Firecracker: what it answers, that it idles, and what a snapshot leaves of it."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import anyio.abc
import pytest

from ramet.drivers.firecracker.driver import Firecracker
from ramet.errors import ExecNotFoundError, GuestError, GuestLostError
from ramet.guest.client import AgentClient, run_exec
from ramet.guest.fields import Fields, put, put_number
from ramet.guest.framing import Frame, FrameDecoder, encode_frame
from ramet.guest.messages import OUTPUT_WINDOW_BYTES, ExecRequest, IdentityRequest, Message
from ramet.model.exec_result import ExecResult
from tests.support.firecracker import LIMIT_S, Vmm, booted, restored

pytestmark = [pytest.mark.vm, pytest.mark.anyio]
FREE = 0x1000000  # memory from here on is the caller's
E_NOENT, E_INVAL, E_NOSYS, E_BADMSG, E_MSGSIZE = 2, 22, 38, 74, 90


@pytest.fixture(scope="module")
def machine(probe: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vmm]:
    """One that the tests which leave it as it was share."""
    with booted(tmp_path_factory.mktemp("machine"), probe) as vmm:
        yield vmm


@pytest.fixture
async def agent(machine: Vmm) -> AsyncIterator[AgentClient]:
    async with machine.agent() as agent:
        yield agent


async def run(agent: AgentClient, line: str) -> ExecResult:
    with anyio.fail_after(LIMIT_S):
        return await run_exec(agent, ExecRequest(tuple(line.split())))


async def words(agent: AgentClient, line: str) -> list[int]:
    """The numbers that a command prints, which has to succeed."""
    outcome = await run(agent, line)
    assert (outcome.exit_code, outcome.stderr) == (0, b""), line
    assert all(len(number) == 16 for number in outcome.stdout.split())
    return [int(number, 16) for number in outcome.stdout.split()]


def identity(generation: int, seed: bytes | None = None) -> IdentityRequest:
    return IdentityRequest(generation, seed or os.urandom(64), f"probe-{generation}", uuid.uuid4().hex)


async def test_memory(agent: AgentClient) -> None:
    await words(agent, f"fill {FREE:x} 3 1122334455667788")
    await words(agent, f"poke {FREE + 4096:x} 0xFFFFffffFFFFffff")
    assert await words(agent, f"peek {FREE + 4088:x} 3") == [
        0x1122334455667788,
        2**64 - 1,
        0x1122334455667788,
    ]
    assert await words(agent, f"peek {FREE:x}") == [0x1122334455667788]
    whole = (3 * 512 - 1) * 0x1122334455667788 + 2**64 - 1
    assert await words(agent, f"sum {FREE:x} 3") == [whole % 2**64]
    assert await words(agent, f"peek {FREE:x} 0") == []


async def test_disk(agent: AgentClient, machine: Vmm) -> None:
    await words(agent, "bpoke 7ff 0123456789abcdef")
    with (machine.directory / "disk.raw").open("rb") as disk:
        disk.seek(0x7FF * 512)
        assert disk.read() == (0x0123456789ABCDEF).to_bytes(8, "little") * 64
    assert await words(agent, "bpeek 7ff") == [0x0123456789ABCDEF]
    assert await words(agent, "bpeek 7fe") == [0]


@pytest.mark.parametrize(
    ("line", "exit_code", "said"),
    [
        ("peek", 2, "usage: peek"),
        ("peek xyz", 2, "usage: peek"),
        ("peek 0x", 2, "usage: peek"),
        ("peek 10000000000000000", 2, "usage: peek"),
        ("peek 1 2 3", 2, "usage: peek"),
        ("peek 1 2 3 4 5 6", 2, "usage: peek"),
        ("peek 1000001", 2, "not a multiple of 8"),
        ("poke 1000000", 2, "usage: poke"),
        ("hostname new", 2, "usage: hostname"),
        ("bpeek -1", 2, "usage: bpeek"),
        ("peek 8000000", 1, "not RAM"),
        ("peek 7fffff8 2", 1, "not RAM"),
        ("peek 1000000 2000000000000000", 1, "not RAM"),
        ("peek fffffffffffffff8", 1, "not RAM"),
        ("peek d0000000", 1, "not RAM"),
        ("fill 1000000 7001 0", 1, "not RAM"),
        ("sum 1000000 fffffffffffff001", 1, "not RAM"),
        ("poke 100000 0", 1, "the probe itself"),
        ("fill 0 9f 0", 0, ""),
        ("fill ff000 2 0", 1, "not RAM"),
        ("give 1000008 1", 2, "not a page's"),
        ("give 100000 1", 1, "the probe itself"),
        ("give 1000000 1", 1, "no balloon"),
        ("bpeek 800", 1, "beyond the end"),
        ("bpoke ffffffffffffffff 1", 1, "beyond the end"),
        ("true", 0, ""),
        ("true whatever", 0, ""),
    ],
)
async def test_exit_codes(agent: AgentClient, line: str, exit_code: int, said: str) -> None:
    outcome = await run(agent, line)
    assert (outcome.exit_code, outcome.stdout) == (exit_code, b"")
    assert said in outcome.stderr.decode()
    assert outcome.stderr == b"" or outcome.stderr.endswith(b"\n")
    await agent.ping()


async def test_every_part_of_the_probe_is_out_of_bounds(agent: AgentClient) -> None:
    ends = 0
    for address in range(0x100000, FREE, 0x8000):
        outcome = await run(agent, f"poke {address:x} 0")
        ends = address if outcome.exit_code == 1 else ends
        assert outcome.exit_code == (1 if ends == address else 0)
    assert 0x100000 < ends < FREE
    await agent.ping()


async def test_unknown_program(agent: AgentClient) -> None:
    with pytest.raises(ExecNotFoundError, match="nope: No such file"):
        await run(agent, "nope")


async def test_identity_is_kept_and_read_back(agent: AgentClient) -> None:
    wanted = identity(41)
    done = await agent.identity(wanted)
    assert (done.generation, done.hostname, done.machine_id) == (41, "probe-41", wanted.machine_id)
    assert abs(done.clock_error_ms) < 1000
    assert (await run(agent, "hostname")).stdout == b"probe-41\n"
    before, after = await agent.ping(), await agent.ping()
    assert abs(after.realtime_ns - time.time_ns()) < 5e9
    assert before.monotonic_ns < after.monotonic_ns


async def test_boot_random_is_never_the_same(agent: AgentClient) -> None:
    seed = os.urandom(32)
    drawn = [(await agent.identity(identity(n % 2, seed))).boot_random for n in range(50)]
    assert len(set(drawn)) == 50


@pytest.mark.timing
async def test_its_clock_runs_as_the_hosts(agent: AgentClient) -> None:
    first, started = await agent.ping(), time.monotonic_ns()
    await anyio.sleep(1)
    second, ended = await agent.ping(), time.monotonic_ns()
    assert (second.monotonic_ns - first.monotonic_ns) / (ended - started) == pytest.approx(1, rel=0.2)


async def test_output_waits_for_its_client_and_others_dont(machine: Vmm, agent: AgentClient) -> None:
    count = 1 << 16  # 1 MiB of output, four times the window
    async with agent.start(ExecRequest(("peek", f"{FREE:x}", f"{count:x}"))) as slow:
        async with machine.agent() as other:
            for _ in range(20):
                await other.ping()
        await agent.ping()
        output = b"".join([chunk.data async for chunk in slow.output()])
        assert (await slow.wait()).exit_code == 0
    assert len(output) == 17 * count


@pytest.mark.timing
async def test_a_client_that_reads_nothing_stalls_only_itself(machine: Vmm, agent: AgentClient) -> None:
    async with machine.stream() as stuck:
        await stuck.send(hello(b"n" * 16))
        ping = encode_frame(Message.PING, 1, b"x" * 256)
        sent = 0
        with anyio.move_on_after(2):
            while sent < 4 << 20:
                await stuck.send(ping * 16)
                sent += len(ping * 16)
        assert sent < 4 << 20, "the probe took it all, and has its answers somewhere"
        for _ in range(20):
            await agent.ping()
        assert await words(agent, f"poke {FREE:x} 5") == []


@pytest.mark.timing
async def test_sixteen_at_once_and_then_again(machine: Vmm) -> None:
    for _ in range(3):
        async with anyio.create_task_group() as tasks:
            started = [anyio.Event() for _ in range(16)]
            everybody = anyio.Event()

            async def one(number: int, started: list[anyio.Event], everybody: anyio.Event) -> None:
                async with machine.agent() as agent:
                    started[number].set()
                    await everybody.wait()
                    assert await words(agent, f"poke {FREE + 8 * number:x} {number:x}") == []
                    assert await words(agent, f"peek {FREE + 8 * number:x}") == [number]

            for number in range(16):
                tasks.start_soon(one, number, started, everybody)
            with anyio.fail_after(LIMIT_S):
                for event in started:
                    await event.wait()
            with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                async with machine.stream():
                    pass
            everybody.set()
        await anyio.sleep(0.05)  # the host tells the guest of closed connections when it comes to it


async def test_other_ports_are_closed(machine: Vmm) -> None:
    with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
        async with machine.stream(1025):
            pass


@pytest.mark.timing
async def test_a_command_can_be_killed_and_runs_on_without_its_client(machine: Vmm) -> None:
    async with machine.agent() as agent:
        endless = ExecRequest(("peek", f"{FREE:x}", "c00000"))
        async with agent.start(endless) as process:
            await process.signal(15)
            assert (await process.wait()).signal == 15
        async with agent.start(endless):
            assert [process.argv for process in await agent.processes()] == [("peek",)]
            await agent.ping()
        assert await agent.processes() == []
        assert await agent.spawn(ExecRequest(("fill", f"{FREE:x}", "100", "9"))) > 0
        with anyio.fail_after(LIMIT_S):
            while await agent.processes():
                await anyio.sleep(0.01)
        assert await words(agent, f"sum {FREE:x} 100") == [9 * 0x100 * 512]


@pytest.mark.timing
async def test_stdin_is_thrown_away(agent: AgentClient) -> None:
    with anyio.fail_after(LIMIT_S):
        outcome = await run_exec(agent, ExecRequest(("peek", f"{FREE:x}", "4000")), b"x" * 300_000)
    assert (outcome.exit_code, len(outcome.stdout)) == (0, 17 * 0x4000)


def hello(nonce: bytes) -> bytes:
    return encode_frame(Message.HELLO, 0, put(1, nonce) + put_number(2, 2, 1))


async def frames(stream: anyio.abc.ByteStream, count: int) -> list[Frame]:
    found: list[Frame] = []
    decoder = FrameDecoder()
    with anyio.fail_after(LIMIT_S):
        while len(found) < count:
            found += decoder.feed(await stream.receive())
    return found


@pytest.mark.parametrize(
    ("type_", "stream_number", "payload", "error"),
    [
        (Message.PING, 1, b"x" * 257, E_MSGSIZE),
        (Message.IDENTITY, 1, b"", E_BADMSG),
        (Message.IDENTITY, 1, b"\1\xff\xff\xff\xff", E_BADMSG),
        (Message.EXEC, 1, b"", E_INVAL),
        (Message.EXEC, 0, put(1, b"true"), E_INVAL),
        (Message.EXEC, 1, put(1, b"true\0"), E_INVAL),
        (Message.EXEC, 1, put(1, b"true") + put(6, b"x"), E_INVAL),
        (Message.EXEC, 1, put(1, b"x" * 60_000), E_NOENT),
        (Message.SHUTDOWN, 1, b"", E_INVAL),
        (Message.SHUTDOWN, 1, put_number(1, 1, 2), E_INVAL),
        (0x55, 7, b"?", E_NOSYS),
    ],
)
async def test_malformed_requests(
    machine: Vmm, type_: int, stream_number: int, payload: bytes, error: int
) -> None:
    async with machine.stream() as stream:
        await stream.send(b"of another life" + hello(b"n" * 16))
        [welcome] = await frames(stream, 1)
        assert Fields(welcome.payload).one(1) == b"n" * 16
        await stream.send(encode_frame(type_, stream_number, payload))
        [answer] = await frames(stream, 1)
        assert (answer.type, answer.stream) == (Message.ERROR, stream_number)
        assert Fields(answer.payload).number(1, 4) == error


async def test_garbage_and_silence_before_a_session(machine: Vmm) -> None:
    async with machine.stream() as stream:
        await stream.send(os.urandom(200_000) + b"\x7e" * 1000 + encode_frame(Message.PING, 1, b"early"))
        await stream.send(hello(b"m" * 16) + encode_frame(Message.PING, 2, b"late"))
        answers = await frames(stream, 2)
        assert [(answer.type, answer.stream) for answer in answers] == [
            (Message.WELCOME, 0),
            (Message.PONG, 2),
        ]


@pytest.mark.timing
async def test_output_stays_within_the_window(machine: Vmm) -> None:
    async with machine.stream() as stream:
        command = put(1, b"peek") + put(1, b"1000000") + put(1, b"8000")
        await stream.send(hello(b"n" * 16) + encode_frame(Message.EXEC, 1, command))
        decoder, taken = FrameDecoder(), 0
        with anyio.move_on_after(1):
            while True:
                for frame in decoder.feed(await stream.receive()):
                    taken += len(frame.payload) if frame.type == Message.STDOUT else 0
        assert OUTPUT_WINDOW_BYTES - 17 < taken <= OUTPUT_WINDOW_BYTES
        await stream.send(encode_frame(Message.CREDIT, 1, put_number(1, 4, 1 << 20)))
        ended = False
        with anyio.fail_after(LIMIT_S):
            while not ended:
                for frame in decoder.feed(await stream.receive()):
                    taken += len(frame.payload) if frame.type == Message.STDOUT else 0
                    ended = ended or frame.type == Message.EXIT
        assert taken == 17 * 0x8000


@pytest.mark.timing
async def test_it_halts_when_idle(machine: Vmm) -> None:
    async with machine.agent() as agent:
        await agent.ping()
        before, started = machine.cpu_s(), time.monotonic()
        await anyio.sleep(2)
        share = (machine.cpu_s() - before) / (time.monotonic() - started)
        await agent.ping()
    assert share < 0.05


@pytest.mark.parametrize("reboot", [False, True])
async def test_shutdown_ends_the_vmm(probe: Path, tmp_path: Path, reboot: bool) -> None:
    with booted(tmp_path, probe) as vmm:
        async with vmm.agent() as agent:
            await agent.shutdown(reboot=reboot)
        vmm.process.wait(LIMIT_S)
        assert ("ramet: power off\n" in vmm.console().replace("\r", "")) is not reboot


async def test_without_a_disk(probe: Path, tmp_path: Path) -> None:
    with booted(tmp_path, probe, disk_bytes=None) as vmm:
        async with vmm.agent() as agent:
            assert (await run(agent, "bpeek 0")).stderr == b"no disk\n"


async def test_memory_above_the_gap(probe: Path, tmp_path: Path) -> None:
    """What doesn't fit below the gap is at 4 GiB."""
    driver = Firecracker()
    await driver.version()
    machine = driver.machine(accelerator="kvm", memory_bytes=5120 * 2**20, cpus=1, guest="bare-metal")
    low, high = driver.ram_regions(machine)
    assert high.guest_start == 0x1_0000_0000
    gap = low.length_bytes
    with booted(tmp_path, probe, memory_mib=5120) as vmm:
        async with vmm.agent() as agent:
            top = 0x1_0000_0000 + 5120 * 2**20 - gap
            for address in (gap - 8, 0x1_0000_0000, top - 8):
                await words(agent, f"poke {address:x} {address:x}")
                assert await words(agent, f"peek {address:x}") == [address]
            assert (await run(agent, f"peek {top:x}")).exit_code == 1
            assert (await run(agent, f"fill {gap - 4096:x} 2 0")).exit_code == 1


@pytest.mark.parametrize("memory_mib", [4, 1024])
async def test_two_cpus(probe: Path, tmp_path: Path, memory_mib: int) -> None:
    """The second one is never started."""
    with booted(tmp_path, probe, memory_mib=memory_mib, cpus=2) as vmm:
        async with vmm.agent() as agent:
            assert await words(agent, f"peek {(memory_mib << 20) - 8:x}") == [0]
            assert (await run(agent, f"peek {memory_mib << 20:x}")).exit_code == 1


@pytest.mark.timing
async def test_a_snapshot_drops_connections_and_keeps_memory(probe: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with booted(source, probe) as vmm:
        async with vmm.agent() as agent:
            await agent.identity(identity(1))
            await words(agent, f"fill {FREE:x} 40 abcdef")
            await words(agent, "bpoke 1 5")
            async with agent.start(ExecRequest(("peek", f"{FREE:x}", "c00000"))):  # much under way
                vmm.pause()
                vmm.snapshot()
                with restored(tmp_path / "one", source) as one, restored(tmp_path / "two", source) as two:
                    drawn = [await forked(fork, number) for number, fork in enumerate((one, two), 2)]
                vmm.resume()
                with pytest.raises(GuestLostError):
                    await agent.ping(timeout_s=LIMIT_S)
        async with vmm.agent() as again:
            assert again.welcome.generation == 1
            drawn.append((await again.identity(identity(4))).boot_random)
            assert await words(again, f"sum {FREE:x} 40") == [0x40 * 512 * 0xABCDEF]
    assert len(set(drawn)) == 3


async def test_who_asked_while_the_guest_was_saved_is_told_of_the_loss(probe: Path, tmp_path: Path) -> None:
    """The question is there when the guest learns of the reset: it was on its way for longer than that."""
    failures: list[GuestError] = []

    async def ask(agent: AgentClient) -> None:
        try:
            await agent.ping(timeout_s=LIMIT_S)
        except GuestError as error:
            failures.append(error)

    with booted(tmp_path, probe) as vmm:
        async with vmm.agent() as agent, vmm.agent() as idle, anyio.create_task_group() as tasks:
            vmm.pause()
            vmm.snapshot()
            tasks.start_soon(ask, agent)
            await anyio.sleep(0.2)  # Firecracker takes it from the socket: nothing tells when
            vmm.resume()
            tasks.start_soon(ask, idle)
        async with vmm.agent() as again:
            await again.ping()
    assert [type(error) for error in failures] == [GuestLostError, GuestLostError]


async def forked(fork: Vmm, number: int) -> bytes:
    """What a fork draws, after a look at what it has of its parent's and a change of its own."""
    async with fork.agent() as agent:
        assert agent.welcome.generation == 1
        assert (await run(agent, "hostname")).stdout == b"probe-1\n"
        done = await agent.identity(identity(number))
        assert (done.hostname, abs(done.clock_error_ms) < 1000) == (f"probe-{number}", True)
        assert await words(agent, f"sum {FREE:x} 40") == [0x40 * 512 * 0xABCDEF]
        assert await words(agent, "bpeek 1") == [5]
        await words(agent, f"fill {FREE:x} 40 {number:x}")
        await words(agent, f"bpoke 1 {number:x}")
        assert await words(agent, f"sum {FREE:x} 40") == [0x40 * 512 * number]
        assert await words(agent, "bpeek 1") == [number]
        async with fork.agent() as another:
            await another.ping()
    return done.boot_random


async def test_a_guest_that_lost_its_vmm_says_so(probe: Path, tmp_path: Path) -> None:
    with booted(tmp_path, probe) as vmm:
        async with vmm.agent() as agent:
            vmm.process.kill()
            with pytest.raises(GuestError):
                await agent.ping(timeout_s=LIMIT_S)
