"""What others notice of a guest that lies: nothing. And what the host spends on it: little."""

from __future__ import annotations

import random
import socket
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import anyio.abc
import pytest

from ramet.errors import GuestLostError, ProtocolError
from ramet.guest.client import AgentClient, run_exec
from ramet.guest.fields import put
from ramet.guest.framing import Frame, FrameDecoder, encode_frame
from ramet.guest.messages import OUTPUT_WINDOW_BYTES, ExecRequest, Message
from ramet.system.streams import connect_stream
from ramet.units import MIB

from .lying_guest import LyingGuest
from .test_host_parser import STARTED, guest_that

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


@contextmanager
def peak_below(limit_bytes: int) -> Iterator[None]:
    """Python's own memory may grow by so much, at any moment."""
    tracemalloc.start()
    try:
        yield
        _now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < limit_bytes


@pytest.mark.slow
@pytest.mark.timing
async def test_output_in_single_octets_takes_little_more_than_its_size() -> None:
    """Alternating streams can't be joined piece to piece: without a bound each octet takes 200."""
    both = encode_frame(Message.STDOUT, 1, b"o") + encode_frame(Message.STDERR, 1, b"e")

    def answer(frame: Frame) -> bytes:
        return STARTED + both * 8_000 if frame.type == Message.EXEC else b""

    async with guest_that(answer) as agent, agent.start(ExecRequest(("x",))) as process:
        with peak_below(2 * MIB):
            with anyio.fail_after(30):
                while process._stream._may_receive > OUTPUT_WINDOW_BYTES - 16_000:
                    await anyio.sleep(0.01)
        got = {"stdout": b"", "stderr": b""}
        async for chunk in process.output():
            got[chunk.stream] += chunk.data
            if sum(map(len, got.values())) == 16_000:
                break
        assert got == {"stdout": b"o" * 8_000, "stderr": b"e" * 8_000}


@pytest.mark.proves("I8")
async def test_answers_of_nothing_but_fields_take_little() -> None:
    many = put(1, b"") * (65_536 // 5)
    async with guest_that(lambda frame: encode_frame(Message.LIST_DONE, frame.stream, many)) as agent:
        with peak_below(8 * MIB), pytest.raises(ProtocolError, match="lists 13107 processes"):
            await agent.processes()


@pytest.mark.timing
def test_flags_and_crumbs_cost_no_more_than_frames() -> None:
    """So that a guest can't keep the host busy with less than it has to send for it."""

    def seconds(wire: bytes) -> float:
        decoder, began = FrameDecoder(), time.process_time()
        for _ in range(10):
            decoder.feed(wire)
        return time.process_time() - began

    frames = seconds((encode_frame(Message.STDOUT, 1, b"x") * 10_000)[:131_072])
    assert seconds(b"\x7e" * 131_072) < frames
    assert seconds(b"a\x7e" * 65_536) < frames


@pytest.mark.proves("I8")
@pytest.mark.deep
@pytest.mark.timing
@pytest.mark.alone
@pytest.mark.usefixtures("agent_process")
async def test_a_flood_does_not_hold_up_a_neighbour(tmp_path: Path) -> None:
    """8 MB of the smallest frames from one guest; another, in the same process, answers throughout."""
    flood = encode_frame(Message.STDOUT, 1 << 20, b"x") * 40_000
    round_trips_s: list[float] = []

    def answer(frame: Frame) -> bytes:
        return flood * 14 if frame.type == Message.PING else b""

    async with (
        connect_stream(tmp_path, "agent0.sock") as neighbour,
        AgentClient.connect(neighbour) as good,
        guest_that(answer, last=Message.PING) as evil,
        anyio.create_task_group() as tasks,
    ):
        began = time.monotonic()
        over = anyio.Event()

        async def suffer() -> None:
            with pytest.raises(GuestLostError, match="a ping"):
                await evil.ping(timeout_s=50)
            over.set()

        tasks.start_soon(suffer)
        while not over.is_set():
            round_trips_s.append((await good.ping(timeout_s=20)).round_trip_s)
        whole_s = time.monotonic() - began
    assert len(round_trips_s) > 20
    # Held up, one of them waits for the whole flood.
    assert max(round_trips_s) < whole_s / 2


@pytest.mark.slow
@pytest.mark.usefixtures("agent_process")
async def test_what_is_to_be_ignored_changes_nothing(tmp_path: Path) -> None:
    """Between the frames of a well-behaved agent: stale frames of nobody's streams, cut ones, noise."""
    near, far = socket.socketpair()
    rng = random.Random(5)
    liar = LyingGuest(rng)
    liar._on_living_streams = False
    data = rng.randbytes(1 << 18)
    async with (
        connect_stream(tmp_path, "agent0.sock") as agent_side,
        await anyio.abc.UNIXSocketStream.from_socket(near) as stream,
        await anyio.abc.UNIXSocketStream.from_socket(far) as client_side,
        anyio.create_task_group() as tasks,
    ):

        async def to_the_agent() -> None:
            async for piece in client_side:
                await agent_side.send(piece)

        async def to_the_client() -> None:
            decoder = FrameDecoder()
            async for piece in agent_side:
                for frame in decoder.feed(piece):
                    noise = liar._any()
                    stale = encode_frame(*noise)
                    cut = stale[: rng.randrange(len(stale))]
                    junk = rng.choice((stale, cut, b"\x7e" * 50, b"\x7d\x7e", rng.randbytes(11)))
                    await client_side.send(junk + encode_frame(*frame))

        tasks.start_soon(to_the_agent)
        tasks.start_soon(to_the_client)
        async with AgentClient.connect(stream) as agent:
            outcome = await run_exec(agent, ExecRequest(("cat",)), data)
            assert outcome.stdout == data
            assert (await run_exec(agent, ExecRequest(("sh", "-c", "exit 3")))).exit_code == 3
            await agent.ping()
        tasks.cancel_scope.cancel()
