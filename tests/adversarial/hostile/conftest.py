"""A program that turns on its own guest's agent, and limits short enough for tests."""

from __future__ import annotations

import inspect
import shutil
import subprocess
from pathlib import Path

import pytest

import ramet.guest
from ramet.engine import limits
from ramet.engine.exec import commands
from ramet.engine.restore import load
from ramet.guest.client import AgentClient

AGENT_SOURCES = Path(ramet.guest.__file__).parent / "agent"


@pytest.fixture(scope="session")
def evil(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The static program of `evil.c`."""
    compiler = shutil.which("musl-gcc")
    if compiler is None:
        pytest.skip("no musl-gcc on this machine")
    program = tmp_path_factory.mktemp("evil") / "evil"
    flags = ["-std=c11", "-D_GNU_SOURCE", "-Os", "-Wall", "-Wextra", "-Werror", "-static", "-s"]
    sources = [Path(__file__).parent / "evil.c", AGENT_SOURCES / "link" / "wire.c"]
    subprocess.run([compiler, *flags, f"-I{AGENT_SOURCES}", "-o", program, *sources], check=True, timeout=60)
    return program.read_bytes()


@pytest.fixture
def short_limits(monkeypatch: pytest.MonkeyPatch) -> float:
    """How long this test's host waits for a guest, in seconds."""
    limit_s = 5.0
    monkeypatch.setattr(load, "READY_LIMIT_S", limit_s)
    monkeypatch.setattr(commands, "ANSWER_LIMIT_S", 2.0)
    monkeypatch.setattr(commands, "BACKSTOP_S", 1.0)
    monkeypatch.setattr(limits, "ASK_S", 1.0)
    monkeypatch.setitem(inspect.unwrap(AgentClient.start).__kwdefaults__, "timeout_s", 3.0)
    return limit_s
