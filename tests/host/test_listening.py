"""Connecting to a socket that isn't there yet, of a real process that makes it."""

from __future__ import annotations

import sys
from pathlib import Path

import anyio
import pytest

from ramet.errors import VmmError, VmmTimeoutError
from ramet.host import processes
from ramet.host.listening import connect_when_listening

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]

_LISTENS_LATER = """
import socket, time
time.sleep(0.3)
with socket.socket(socket.AF_UNIX) as listener:
    listener.bind("late.sock")
    listener.listen()
    time.sleep(60)
"""


async def test_several_wait_for_one_socket(tmp_path: Path) -> None:
    process = processes.spawn(
        [sys.executable, "-c", _LISTENS_LATER], directory=tmp_path, log=tmp_path / "log"
    )
    connected = []

    async def connect() -> None:
        connection = await connect_when_listening(tmp_path, "late.sock", process, timeout_s=20)
        connection.close()
        connected.append(True)

    try:
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(connect)
    finally:
        await processes.kill(process)
    assert connected == [True] * 3


async def test_process_that_ends_or_never_listens(tmp_path: Path) -> None:
    gone = processes.spawn(["true"], directory=tmp_path, log=tmp_path / "log")
    with pytest.raises(VmmError, match="ended before it listened"):
        await connect_when_listening(tmp_path, "late.sock", gone, timeout_s=20)
    idle = processes.spawn(["sleep", "60"], directory=tmp_path, log=tmp_path / "log")
    try:
        with pytest.raises(VmmTimeoutError, match="didn't listen"):
            await connect_when_listening(tmp_path, "late.sock", idle, timeout_s=0.2)
    finally:
        await processes.kill(idle)
