"""The real agent as an ordinary process, on a UNIX socket: no VM, the same protocol."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import ramet.guest
from ramet.errors import UnavailableError
from ramet.guest.agent_binary import agent_path
from tests.unix_sockets import listening

SOURCES = Path(ramet.guest.__file__).parent / "agent"


@pytest.fixture(scope="session")
def agent_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the sources where a compiler is, else the one that was built before."""
    if shutil.which("musl-gcc") and shutil.which("make"):
        out = tmp_path_factory.mktemp("agent") / "agent"
        subprocess.run(["make", "-C", SOURCES, "CC=musl-gcc", f"OUT={out}"], check=True, timeout=120)
        return out
    try:
        return agent_path()
    except UnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture
def agent_process(agent_program: Path, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """An agent that listens on `tmp_path / "agent0.sock"`."""
    socket = tmp_path / "agent0.sock"
    with subprocess.Popen([agent_program, "--socket", socket]) as process:
        try:
            deadline = time.monotonic() + 10
            while not listening(socket):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.002)
            yield process
        finally:
            process.kill()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
