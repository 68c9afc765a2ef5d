"""The vsock client: asking for the agent's port, and asking again."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from ramet.errors import GuestError, GuestTimeoutError, ProtocolError
from ramet.guest.client import AgentClient, run_exec
from ramet.guest.messages import ExecRequest
from ramet.guest.vsock import connect_vsock
from ramet.paths import VSOCK_SOCKET
from ramet.system import sockets

from .muxer import CONNECT, drops, listen, muxer, says, serves
from .test_ports import open_descriptors

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Deeper than sun_path could name."""
    deep = tmp_path.joinpath(*["a-long-name-of-a-directory"] * 6)
    deep.mkdir(parents=True)
    return deep


@pytest.mark.usefixtures("agent_process")
async def test_several_clients_at_once_have_the_agent(directory: Path, tmp_path: Path) -> None:
    said: list[bytes] = []

    async def work(number: int) -> None:
        async with connect_vsock(directory, 5) as stream, AgentClient.connect(stream) as agent:
            outcome = await run_exec(agent, ExecRequest(("sh", "-c", f"echo {number}; cat")), bytes(300_000))
            said.append(outcome.stdout)

    async with (
        muxer(directory, serves(tmp_path / "agent0.sock")) as done,
        anyio.create_task_group() as tasks,
    ):
        for number in range(5):
            tasks.start_soon(work, number)
    assert sorted(said) == [b"%d\n" % number + bytes(300_000) for number in range(5)]
    assert len(done) == 5


@pytest.mark.usefixtures("agent_process")
async def test_what_ends_before_it_was_accepted_is_made_again(directory: Path, tmp_path: Path) -> None:
    serve = serves(tmp_path / "agent0.sock")
    async with muxer(directory, drops, drops, drops, serve) as done:
        async with connect_vsock(directory, 30) as stream, AgentClient.connect(stream) as agent:
            await agent.ping()
        assert done == [drops, drops, drops, serve]


async def test_it_ends_with_the_time_that_it_was_given(directory: Path) -> None:
    before = open_descriptors()
    async with muxer(directory, drops) as done:
        with pytest.raises(GuestTimeoutError, match=r"accepted no connection in 0\.3 s"):
            async with connect_vsock(directory, 0.3):
                pass
        # Pauses that grow: without them it would be thousands.
        assert 4 < len(done) < 100
    assert open_descriptors() == before


@pytest.mark.timing
async def test_before_the_device_is_active_it_waits_in_the_queue(directory: Path) -> None:
    """One connection, which is answered when somebody looks; none are made meanwhile."""
    with listen(directory) as listener:
        async with anyio.create_task_group() as tasks:

            async def activate() -> None:
                await anyio.sleep(0.3)
                connection, _ = listener.accept()
                with connection:
                    assert connection.recv(100) == CONNECT
                    connection.sendall(b"OK 1\nhello")
                with pytest.raises(BlockingIOError):
                    listener.accept()

            tasks.start_soon(activate)
            async with connect_vsock(directory, 30) as stream:
                assert await stream.receive() == b"hello"

        with pytest.raises(GuestTimeoutError):
            async with connect_vsock(directory, 0.1):
                pass


@pytest.mark.timing
async def test_a_full_queue_is_waited_for(directory: Path) -> None:
    with listen(directory, queue=0) as listener, sockets.connect(directory, VSOCK_SOCKET):
        with pytest.raises(GuestTimeoutError):
            async with connect_vsock(directory, 0.1):
                pass
        async with anyio.create_task_group() as tasks:

            async def make_room() -> None:
                await anyio.sleep(0.1)
                listener.accept()[0].close()
                await anyio.wait_readable(listener)
                connection, _ = listener.accept()
                connection.sendall(b"OK 1\n")
                connection.close()

            tasks.start_soon(make_room)
            async with connect_vsock(directory, 30):
                pass


async def test_what_follows_the_answer_stays_in_the_stream(directory: Path) -> None:
    async with (
        muxer(directory, says(b"OK 1073741825\n~already\n")),
        connect_vsock(directory, 5) as stream,
    ):
        assert await stream.receive() == b"~already\n"


@pytest.mark.parametrize(
    "answer", [b"NO\n", b"OK\n", b"OK 1 2\n", b"O" * 100, b"\0" * 32, b"OK 99999999999\n"]
)
async def test_another_answer_is_refused(directory: Path, answer: bytes) -> None:
    before = open_descriptors()
    async with muxer(directory, says(answer)):
        with pytest.raises(ProtocolError, match=r"vsock\.sock answered"):
            async with connect_vsock(directory, 5):
                pass
    assert open_descriptors() == before


async def test_without_a_listener_it_says_so(directory: Path) -> None:
    with pytest.raises(GuestError, match=r"vsock\.sock.*No such file"):
        async with connect_vsock(directory, 60):
            pass
    listen(directory).close()
    with pytest.raises(GuestError, match=r"vsock\.sock.*refused"):
        async with connect_vsock(directory, 60):
            pass
    with pytest.raises(GuestError, match="gone"):
        async with connect_vsock(directory / "gone", 60):
            pass


@pytest.mark.timing
async def test_failure_and_cancellation_leave_nothing_open(directory: Path) -> None:
    before = open_descriptors()
    async with muxer(directory, says(b"OK 1\n")):
        with pytest.raises(ZeroDivisionError):
            async with connect_vsock(directory, 5):
                raise ZeroDivisionError
        with anyio.move_on_after(0.05) as scope:
            async with connect_vsock(directory, 5):
                await anyio.sleep_forever()
        assert scope.cancelled_caught
    (directory / VSOCK_SOCKET).unlink()
    with listen(directory):
        with anyio.move_on_after(0.05) as scope:
            async with connect_vsock(directory, 60):
                pass
        assert scope.cancelled_caught
    assert open_descriptors() == before
