"""Leases of an agent whose stream ends before anybody has been answered. No VM: the streams are real."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import anyio.abc
import pytest

from ramet.errors import GuestLostError
from ramet.guest.agents import Agents
from ramet.guest.vsock import connect_vsock
from ramet.paths import VSOCK_SOCKET

from .muxer import accepts_and_loses, muxer, serves

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


@asynccontextmanager
async def agents_of_a_host() -> AsyncIterator[Agents]:
    async with anyio.create_task_group() as tasks:
        yield Agents(tasks)
        tasks.cancel_scope.cancel()


@pytest.mark.usefixtures("agent_process")
async def test_a_stream_lost_before_the_handshake_is_made_again(tmp_path: Path) -> None:
    serve = serves(tmp_path / "agent0.sock")
    async with (
        muxer(tmp_path, accepts_and_loses, accepts_and_loses, serve) as done,
        agents_of_a_host() as agents,
        agents.lease("x", open_stream=partial(connect_vsock, tmp_path, 5), timeout_s=20) as agent,
    ):
        await agent.ping()
        assert done == [accepts_and_loses, accepts_and_loses, serve]


async def test_it_is_given_up_after_a_few(tmp_path: Path) -> None:
    async with muxer(tmp_path, accepts_and_loses) as done, agents_of_a_host() as agents:
        with pytest.raises(GuestLostError):
            async with agents.lease("x", open_stream=partial(connect_vsock, tmp_path, 5), timeout_s=20):
                pass
        assert len(done) == 5


async def test_after_the_handshake_it_is_not(
    agent_process: subprocess.Popen[bytes],
    tmp_path: Path,
) -> None:
    """What a client had under way is lost with its stream, and it has to know."""
    async with (
        muxer(tmp_path, serves(tmp_path / "agent0.sock")) as done,
        agents_of_a_host() as agents,
    ):
        with pytest.raises(GuestLostError):
            async with agents.lease(
                "x", open_stream=partial(connect_vsock, tmp_path, 5), timeout_s=20
            ) as agent:
                agent_process.kill()
                await agent.ping()
        assert len(done) == 1


async def test_a_vmm_that_is_gone_after_a_loss_is_a_loss(tmp_path: Path) -> None:
    """So that its user waits for the process's end, and says that."""

    async def dies(stream: anyio.abc.ByteStream) -> None:
        (tmp_path / VSOCK_SOCKET).unlink()
        await accepts_and_loses(stream)

    async with muxer(tmp_path, dies), agents_of_a_host() as agents:
        with pytest.raises(GuestLostError):
            async with agents.lease("x", open_stream=partial(connect_vsock, tmp_path, 5), timeout_s=20):
                pass
