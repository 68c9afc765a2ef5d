"""The process that lets a guest go on when its ramet dies: against a socket, without a VMM."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ramet.model.record import ProcessRef
from ramet.system import liveness, process_ref, processes, spawn
from ramet.system.pause_watchdog import ResumeSteps, resume_on_death

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

STEPS = ResumeSteps("control.sock", (("", "hello"), ("go on\n", "done|refused")))
_DIES = """
import asyncio, os, sys
from pathlib import Path
from ramet.system.pause_watchdog import ResumeSteps, resume_on_death

async def main():
    steps = ResumeSteps("control.sock", (("", "hello"), ("go on\\n", "done")))
    async with resume_on_death(Path(sys.argv[1]), steps) as process:
        print(process.pid, flush=True)
        await asyncio.sleep(50)

asyncio.run(main())
"""


@pytest.fixture
def control(tmp_path: Path) -> Iterator[socket.socket]:
    """A control socket that listens and answers nobody yet."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "control.sock"))
        listener.listen()
        listener.settimeout(20)
        yield listener


def answer(control: socket.socket) -> bytes:
    """Greet whoever connects, and what it says then."""
    connection, _ = control.accept()
    with connection:
        connection.settimeout(20)
        connection.sendall(b"hello\n")
        said = connection.recv(100)
        connection.sendall(b"an event\ndone\n")
    return said


async def test_nothing_is_said_when_the_block_is_left(tmp_path: Path, control: socket.socket) -> None:
    async with resume_on_death(tmp_path, STEPS) as process:
        assert liveness.is_alive(process)
        assert os.getsid(process.pid) == process.pid, "a Ctrl-C would end it with its ramet"
        assert spawn.spawned_in(tmp_path) == [], "it would be taken for a VMM"
    assert not liveness.is_alive(process)
    control.settimeout(0.2)
    with pytest.raises(TimeoutError):
        control.accept()


async def test_nothing_is_said_after_an_error_that_its_ramet_lives_to_handle(
    tmp_path: Path, control: socket.socket
) -> None:
    with pytest.raises(ValueError, match="mine"):
        async with resume_on_death(tmp_path, STEPS) as process:
            raise ValueError("mine")
    assert not liveness.is_alive(process)
    control.settimeout(0.2)
    with pytest.raises(TimeoutError):
        control.accept()


def killed(directory: Path) -> ProcessRef:
    """The process that is left of a ramet that was killed inside."""
    with subprocess.Popen(
        [sys.executable, "-c", _DIES, str(directory)], stdout=subprocess.PIPE, text=True
    ) as dying:
        assert dying.stdout is not None
        process = process_ref.reference(int(dying.stdout.readline()))
        dying.send_signal(signal.SIGKILL)
    return process


async def test_the_guest_goes_on_when_ramet_is_killed(tmp_path: Path, control: socket.socket) -> None:
    process = killed(tmp_path)
    assert answer(control) == b"go on\n"
    assert await processes.wait_ended(process, timeout_s=20)


async def test_it_tries_again_when_the_vmm_hangs_up(tmp_path: Path, control: socket.socket) -> None:
    process = killed(tmp_path)
    for _ in range(3):
        connection, _ = control.accept()
        connection.close()
    assert answer(control) == b"go on\n"
    assert await processes.wait_ended(process, timeout_s=20)


@pytest.mark.timing
async def test_it_ends_when_the_vmm_is_gone_too(tmp_path: Path, control: socket.socket) -> None:
    control.close()
    begun = time.monotonic()
    process = killed(tmp_path)
    assert await processes.wait_ended(process, timeout_s=20)
    assert time.monotonic() - begun < 20
