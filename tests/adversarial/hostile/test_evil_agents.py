"""Evil agents on the sockets of an instance's directory, in place of a VMM: what the engine's connections
make of them, while the real agent of another instance answers throughout.
"""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import anyio.abc
import pytest

from ramet.errors import GuestError, GuestLostError, GuestTimeoutError, ProtocolError, UsageError
from ramet.guest.agents import Agents
from ramet.guest.client import AgentClient, run_exec
from ramet.guest.fields import put, put_number, put_text
from ramet.guest.framing import Frame, FrameDecoder, encode_frame
from ramet.guest.messages import ExecRequest, Message
from ramet.guest.ports import claim_port
from tests.unit.guest.conftest import agent_process, agent_program

__all__ = ["agent_process", "agent_program"]

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

Deed = Callable[[anyio.abc.ByteStream], Awaitable[None]]


def welcome(hello: Frame, nonce: bytes | None = None) -> bytes:
    """WELCOME for that HELLO, or with another nonce."""
    numbers = put_number(4, 8, 1) + put_number(5, 2, 8)
    said = put(1, nonce or hello.payload[5:21]) + put_number(2, 2, 1) + put_text(3, "evil") + numbers
    return encode_frame(Message.WELCOME, 0, said)


async def greeted(stream: anyio.abc.ByteStream) -> AsyncIterator[Frame]:
    """Greets; then the client's other frames."""
    decoder = FrameDecoder()
    while True:
        for frame in decoder.feed(await stream.receive()):
            if frame.type == Message.HELLO:
                await stream.send(welcome(frame))
            else:
                yield frame


async def says_nothing(stream: anyio.abc.ByteStream) -> None:
    while True:
        await stream.receive()


async def does_not_even_read(stream: anyio.abc.ByteStream) -> None:
    await anyio.sleep_forever()


async def hangs_up(stream: anyio.abc.ByteStream) -> None:
    return


async def never_stops(stream: anyio.abc.ByteStream) -> None:
    while True:
        await stream.send(bytes(100_000))


async def knows_another_nonce(stream: anyio.abc.ByteStream) -> None:
    decoder = FrameDecoder()
    while True:
        for frame in decoder.feed(await stream.receive()):
            await stream.send(welcome(frame, bytes(16)))


async def goes_deaf(stream: anyio.abc.ByteStream) -> None:
    async for _ in greeted(stream):
        await anyio.sleep_forever()


async def answers_other_streams(stream: anyio.abc.ByteStream) -> None:
    async for frame in greeted(stream):
        for other in range(1000):
            await stream.send(encode_frame(Message.PONG, frame.stream + 1000 + other, b""))


async def answers_wrongly(stream: anyio.abc.ByteStream) -> None:
    async for frame in greeted(stream):
        await stream.send(encode_frame(Message.STDOUT, frame.stream, b"x"))


async def hangs_up_in_the_middle(stream: anyio.abc.ByteStream) -> None:
    async for frame in greeted(stream):
        await stream.send(encode_frame(Message.PONG, frame.stream, bytes(200))[:100])
        return


async def answers_with_its_last_word(stream: anyio.abc.ByteStream) -> None:
    async for frame in greeted(stream):
        if frame.type == Message.SHUTDOWN:
            await stream.send(encode_frame(Message.SHUTDOWN_DONE, frame.stream, b""))
        elif frame.type == Message.EXEC:
            await stream.send(encode_frame(Message.STARTED, frame.stream, put_number(1, 4, 77)))
        return


@asynccontextmanager
async def evil_agent(directory: Path, deed: Deed) -> AsyncIterator[None]:
    """Serves both ports of an instance that isn't there."""

    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            try:
                await deed(stream)
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                pass

    async with (
        await anyio.create_unix_listener(directory / "agent0.sock") as first,
        await anyio.create_unix_listener(directory / "agent1.sock") as second,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(first.serve, serve)
        tasks.start_soon(second.serve, serve)
        yield
        tasks.cancel_scope.cancel()


@pytest.mark.proves("I8")
@pytest.mark.timing
@pytest.mark.parametrize(
    ("deed", "error"),
    [
        (says_nothing, GuestTimeoutError),
        (does_not_even_read, GuestTimeoutError),
        (hangs_up, GuestLostError),
        (never_stops, GuestTimeoutError),
        (knows_another_nonce, GuestTimeoutError),
        (goes_deaf, GuestTimeoutError),
        (answers_other_streams, GuestTimeoutError),
        (answers_wrongly, ProtocolError),
        (hangs_up_in_the_middle, GuestLostError),
    ],
)
async def test_each_evil_agent_has_its_error_and_its_neighbour_none(
    tmp_path: Path, agent_process: subprocess.Popen[bytes], deed: Deed, error: type[GuestError]
) -> None:
    enemy = tmp_path / "enemy"
    enemy.mkdir()
    async with evil_agent(enemy, deed), anyio.create_task_group() as tasks:
        agents = Agents(tasks)

        async def be_bothered() -> None:
            with pytest.raises(error) as caught:
                async with agents.lease(
                    "enemy", open_stream=partial(claim_port, enemy, 2, 60), timeout_s=0.4
                ) as agent:
                    await agent.ping(timeout_s=0.4)
            assert type(caught.value) is error

        async def all_at_once() -> None:
            async with anyio.create_task_group() as several:
                for _ in range(5):
                    several.start_soon(be_bothered)

        with anyio.fail_after(20):
            async with anyio.create_task_group() as both:
                both.start_soon(all_at_once)
                for _ in range(5):
                    async with agents.lease(
                        "good", open_stream=partial(claim_port, tmp_path, 1, 60), timeout_s=20
                    ) as good:
                        assert (await run_exec(good, ExecRequest(("echo", "fine")))).stdout == b"fine\n"
            # Nothing is held: its ports can be claimed at once, and its agent may have changed its mind.
            async with claim_port(enemy, 1, wait_s=2):
                pass
        tasks.cancel_scope.cancel()


@pytest.mark.slow
@pytest.mark.timing
async def test_a_guest_that_takes_no_input_is_left_without_delay(tmp_path: Path) -> None:
    """Every way out of a request works while its bytes are stuck half-way."""
    async with evil_agent(tmp_path, goes_deaf), anyio.create_task_group() as tasks:
        agents = Agents(tasks)
        with anyio.fail_after(20):
            async with agents.lease(
                "enemy", open_stream=partial(claim_port, tmp_path, 2, 60), timeout_s=5
            ) as agent:
                large = ExecRequest(("x", *("y" * 60_000,)))
                for _ in range(10):  # more than a socket holds
                    with pytest.raises(GuestTimeoutError):
                        await agent.spawn(large, timeout_s=0.05)
                with pytest.raises(UsageError):
                    await agent.spawn(ExecRequest(("x", "y" * 70_000)), timeout_s=0.05)
                with pytest.raises(GuestTimeoutError):
                    await agent.ping(timeout_s=0.05)
        tasks.cancel_scope.cancel()


@pytest.mark.timing
async def test_a_last_word_is_heard(tmp_path: Path) -> None:
    """One that answers and is gone in the same moment, as a guest that powers off, has answered."""
    async with evil_agent(tmp_path, answers_with_its_last_word), anyio.create_task_group() as tasks:
        agents = Agents(tasks)

        async def shut_down(agent: AgentClient) -> None:
            await agent.shutdown(timeout_s=5)

        async def spawn(agent: AgentClient) -> None:
            assert await agent.spawn(ExecRequest(("x",)), timeout_s=5) == 77

        for ask in shut_down, spawn:
            with anyio.fail_after(20):
                async with agents.lease(
                    "leaving", open_stream=partial(claim_port, tmp_path, 2, 60), timeout_s=5
                ) as agent:
                    await ask(agent)
        tasks.cancel_scope.cancel()
