"""The host's side of the protocol against guests that lie, by properties and by a seeded run.

Whatever a guest sends, what comes out is an answer or a documented error, in bounded time. `make fuzz` does
the same for a million frames.
"""

from __future__ import annotations

import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from unittest.mock import patch

import anyio
import anyio.abc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ramet.errors import ExecError, GuestTimeoutError, ProtocolError, RametError
from ramet.guest import command_stream
from ramet.guest.client import AgentClient, run_exec
from ramet.guest.fields import Fields, put, put_number, put_text
from ramet.guest.framing import Frame, FrameDecoder, encode_frame, stuff
from ramet.guest.messages import (
    ExecRequest,
    GuestProcess,
    IdentityReply,
    Message,
    Welcome,
    exit_status,
    started_pid,
)
from ramet.guest.requests import decode_error

from . import host_run
from .lying_guest import HonestGuest

pytestmark = pytest.mark.timeout(60)

numbers = st.sampled_from([0, 1, 2, 255, 256, 65_535, 2**31, 2**32 - 1])
values = st.one_of(
    st.binary(max_size=40),
    st.builds(
        lambda width, number: (number % 256**width).to_bytes(width, "little"),
        st.sampled_from([1, 2, 4, 8]),
        numbers,
    ),
    st.integers(0, 700).map(bytes),
    st.sampled_from(["\x1b]0;x\a", "::1", "10.0.0.1", "a" * 32]).map(str.encode),
)
fields = st.lists(st.tuples(st.integers(0, 8), values), max_size=8).map(
    lambda listed: b"".join(put(tag, value) for tag, value in listed)
)
payloads = st.one_of(
    fields, st.binary(max_size=60), st.builds(lambda whole, cut: whole[:cut], fields, st.integers(0, 60))
)
lies = st.lists(
    st.one_of(
        st.builds(encode_frame, st.sampled_from(list(Message)), st.integers(0, 6), payloads),
        st.builds(encode_frame, st.integers(0, 255), numbers, payloads),
        st.builds(lambda plain: b"\x7e" + stuff(plain) + b"\x7e", st.binary(max_size=80)),
        st.binary(max_size=100),
    ),
    max_size=12,
).map(b"".join)


@asynccontextmanager
async def guest_that(
    answer: Callable[[Frame], bytes], *, last: Message | None = None
) -> AsyncIterator[AgentClient]:
    """A session with a guest that greets honestly and answers each frame so, and hangs up after one of type
    `last`.
    """
    near, far = socket.socketpair()
    honest = HonestGuest(random.Random(0))
    async with (
        await anyio.abc.UNIXSocketStream.from_socket(near) as stream,
        await anyio.abc.UNIXSocketStream.from_socket(far) as guest,
        anyio.create_task_group() as tasks,
    ):

        async def serve() -> None:
            decoder = FrameDecoder()
            with suppress(anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                while True:
                    for frame in decoder.feed(await guest.receive()):
                        if frame.type == Message.HELLO:
                            (welcome,) = honest.answers(frame)
                            await guest.send(encode_frame(*welcome))
                        if said := answer(frame):
                            await guest.send(said)
                        if frame.type == last:
                            await guest.aclose()
                            return

        tasks.start_soon(serve)
        async with AgentClient.connect(stream) as agent:
            yield agent
        tasks.cancel_scope.cancel()


@given(payloads)
def test_a_payload_is_decoded_or_a_protocol_error(payload: bytes) -> None:
    decoders: list[Callable[[bytes], object]] = [
        Welcome.decode,
        exit_status,
        GuestProcess.decode,
        decode_error,
        started_pid,
        lambda answer: IdentityReply.decode(answer, 10**18),
    ]
    for decode in decoders:
        with suppress(ProtocolError):
            str(decode(payload)).encode()


@pytest.mark.slow
@pytest.mark.proves("I8")
@pytest.mark.timing
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(lies, lies)
def test_whatever_a_guest_says_there_is_an_answer_or_an_error(unasked: bytes, answered: bytes) -> None:
    def answer(frame: Frame) -> bytes:
        return unasked if frame.type == Message.HELLO else answered

    async def ask() -> None:
        with anyio.fail_after(10):
            async with guest_that(answer, last=Message.EXEC) as agent:
                questions: list[Callable[[], Awaitable[object]]] = [
                    lambda: agent.ping(timeout_s=0.02),
                    lambda: agent.processes(timeout_s=0.02),
                    lambda: run_exec(agent, ExecRequest(("true",)), b"x"),
                ]
                for question in questions:
                    with suppress(RametError):
                        await question()

    with patch.object(command_stream, "_KILL_LIMIT_S", 0.02):
        anyio.run(ask)


def test_thousands_of_lies_in_sessions_as_the_engine_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_stream, "_KILL_LIMIT_S", 0.1)
    report = host_run.Report()
    anyio.run(host_run.run, 10_000, 7, report)
    assert report.crashes == []
    assert report.frames >= 10_000
    # Both came about, or the run has shown nothing.
    assert report.errors["answered"] > 20
    assert report.errors["ProtocolError"] > 20


EXIT_0 = encode_frame(Message.EXIT, 1, put_number(1, 4, 0))
STARTED = encode_frame(Message.STARTED, 1, put_number(1, 4, 7))


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (EXIT_0, "before its start"),
        (encode_frame(Message.STDOUT, 1, b"x") + STARTED + EXIT_0, "before its start"),
        (STARTED + STARTED + EXIT_0, "after its start"),
        (encode_frame(Message.STARTED, 1, put_number(1, 4, 0)), "without a number"),
        # A shell would take 256 for success.
        (STARTED + encode_frame(Message.EXIT, 1, put_number(1, 4, 256)), "a code of 256"),
        (STARTED + encode_frame(Message.EXIT, 1, put_number(2, 4, 0)), "a signal of 0"),
        (STARTED + encode_frame(Message.EXIT, 1, put_number(2, 4, 128)), "a signal of 128"),
        (STARTED + encode_frame(Message.STDIN_CREDIT, 1, put_number(1, 4, 1)), "more standard input"),
    ],
)
async def test_a_command_that_cannot_be_is_a_breach(answer: bytes, reason: str) -> None:
    async with guest_that(lambda frame: answer if frame.type == Message.EXEC else b"") as agent:
        with pytest.raises(ProtocolError, match=reason):
            await run_exec(agent, ExecRequest(("true",)))


@pytest.mark.anyio
@pytest.mark.parametrize("lie", ["more than was sent", "less than before", "in WELCOME", "nothing"])
async def test_counts_that_cannot_be_are_a_breach(lie: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that lies about what it has had loses this connection, and isn't asked for another."""
    monkeypatch.setattr(command_stream, "_KILL_LIMIT_S", 0.1)
    grace = put_number(2, 2, 1) + put_text(3, "x") + put_number(4, 8, 1) + put_number(5, 2, 1)
    grace += put_number(6, 4, 30_000)
    acked: dict[str, tuple[int, ...]] = {"more than was sent": (2,), "less than before": (1, 0)}
    made = 0

    @asynccontextmanager
    async def connect() -> AsyncIterator[anyio.abc.ByteStream]:
        nonlocal made
        made += 1
        near, far = socket.socketpair()
        async with (
            await anyio.abc.UNIXSocketStream.from_socket(near) as stream,
            await anyio.abc.UNIXSocketStream.from_socket(far) as guest,
            anyio.create_task_group() as tasks,
        ):

            async def serve() -> None:
                decoder = FrameDecoder()
                with suppress(anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                    while True:
                        for frame in decoder.feed(await guest.receive()):
                            await say(frame)

            async def say(frame: Frame) -> None:
                if frame.type == Message.HELLO:
                    resumed = put_number(7, 8, 7) if made > 1 else b""
                    nonce = put(1, Fields(frame.payload).one(1))
                    await guest.send(encode_frame(Message.WELCOME, 0, nonce + grace + resumed))
                elif frame.type == Message.EXEC:
                    for count in acked.get(lie, ()):
                        await guest.send(encode_frame(Message.ACKED, 0, put_number(1, 8, count)))
                    if lie == "in WELCOME":
                        await guest.aclose()

            tasks.start_soon(serve)
            yield stream
            tasks.cancel_scope.cancel()

    async with connect() as stream, AgentClient.connect(stream, reopen=connect) as agent:
        with pytest.raises(GuestTimeoutError if lie == "nothing" else ProtocolError):
            async with agent.start(ExecRequest(("true",)), timeout_s=1):
                pass
    assert made == (2 if lie == "in WELCOME" else 1)


@pytest.mark.anyio
async def test_output_beyond_the_window_is_a_breach() -> None:
    flood = STARTED + encode_frame(Message.STDOUT, 1, bytes(65_536)) * 5
    async with (
        guest_that(lambda frame: flood if frame.type == Message.EXEC else b"") as agent,
        agent.start(ExecRequest(("yes",))) as command,
    ):
        with pytest.raises(ProtocolError, match="more output than it had credit for"):
            await command.wait()


@pytest.mark.anyio
async def test_a_command_that_fails_while_it_is_fed_is_one_error() -> None:
    """Not a group of the feeder's and the collector's."""
    answers = {
        Message.EXEC: STARTED,
        Message.STDIN: encode_frame(Message.ERROR, 1, put_number(1, 4, 5) + put_text(2, "no more")),
    }
    async with guest_that(lambda frame: answers.get(Message(frame.type), b"")) as agent:
        with pytest.raises(ExecError, match="no more"):
            await run_exec(agent, ExecRequest(("cat",)), bytes(1_000_000))
