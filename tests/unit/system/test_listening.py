"""Waiting for a socket that another process is about to listen on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from ramet.errors import VmmError, VmmTimeoutError
from ramet.model.record import ProcessRef
from ramet.system import listening, process_ref
from ramet.system.listening import connect_when_listening

pytestmark = pytest.mark.anyio

_LISTENER = """
import socket, sys, time
bind_after_s, listen_after_s, stay_s = map(float, sys.argv[1:])
time.sleep(bind_after_s)
listener = socket.socket(socket.AF_UNIX)
listener.bind("wanted.sock")
time.sleep(listen_after_s)
listener.listen(8)
open("log", "a").write("listening")
time.sleep(stay_s)
"""


@contextmanager
def listener(directory: Path, *delays_s: float) -> Iterator[ProcessRef]:
    """A process that binds, listens and goes away after those times."""
    words = [sys.executable, "-I", "-S", "-c", _LISTENER, *map(str, delays_s)]
    with subprocess.Popen(words, cwd=directory) as process:
        try:
            yield process_ref.reference(process.pid)
        finally:
            process.kill()


@pytest.mark.parametrize("listen_after_s", [0, 0.3], ids=["at once", "bound long before it listens"])
async def test_it_is_connected_as_soon_as_it_listens(tmp_path: Path, listen_after_s: float) -> None:
    with listener(tmp_path, 0.2, listen_after_s, 30) as process:
        connection = await connect_when_listening(tmp_path, "wanted.sock", process, timeout_s=20)
        connection.close()
        again = await connect_when_listening(tmp_path, "wanted.sock", process, timeout_s=20)
        again.close()


async def test_several_wait_for_the_same(tmp_path: Path) -> None:
    connected = []

    async def wait(process: ProcessRef) -> None:
        connection = await connect_when_listening(tmp_path, "wanted.sock", process, timeout_s=20)
        connected.append(connection)
        connection.close()

    with listener(tmp_path, 0.3, 0.1, 30) as process:
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(wait, process)
    assert len(connected) == 5


async def test_a_process_that_ends_first_is_an_error(tmp_path: Path) -> None:
    with listener(tmp_path, 30, 0, 0) as process, pytest.raises(VmmTimeoutError, match=r"wanted\.sock"):
        await connect_when_listening(tmp_path, "wanted.sock", process, timeout_s=0.2)
    with pytest.raises(VmmError, match="ended before"):
        await connect_when_listening(tmp_path, "wanted.sock", process, timeout_s=20)


async def test_without_inotify_it_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notifier = listening._Notifier()
    notifier._descriptor = -1
    monkeypatch.setattr(listening._Notifier, "of_this_loop", classmethod(lambda _: notifier))
    with listener(tmp_path, 0.2, 0.1, 30) as process:
        connection = await connect_when_listening(tmp_path, "wanted.sock", process, timeout_s=20)
        connection.close()


@pytest.mark.timing
async def test_a_cancelled_wait_leaves_nothing_behind(tmp_path: Path) -> None:
    with listener(tmp_path, 30, 0, 0) as process:
        with anyio.move_on_after(0.1):
            await connect_when_listening(tmp_path, "wanted.sock", process, timeout_s=20)
        assert listening._Notifier.of_this_loop()._waiting == {}
