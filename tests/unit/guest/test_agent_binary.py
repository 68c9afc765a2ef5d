from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ramet.errors import UnavailableError
from ramet.guest.agent_binary import agent_path, probe_path


def test_an_agent_of_ones_own_is_used(monkeypatch: pytest.MonkeyPatch, agent_program: Path) -> None:
    monkeypatch.setenv("RAMET_AGENT", str(agent_program))
    assert agent_path() == agent_program
    said = subprocess.run([agent_program, "--version"], capture_output=True, check=True, timeout=5)
    assert b"protocol 1" in said.stdout


def test_what_is_missing_is_said_with_the_next_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAMET_AGENT", str(tmp_path / "gone"))
    with pytest.raises(UnavailableError, match="RAMET_AGENT"):
        agent_path()
    monkeypatch.delenv("RAMET_AGENT")
    with pytest.raises(UnavailableError, match="make setup"):
        agent_path("no-such-architecture")
    with pytest.raises(UnavailableError, match="make setup"):
        probe_path("no-such-architecture")


def test_it_needs_nothing_of_the_guest(agent_program: Path) -> None:
    program = agent_program.read_bytes()
    assert program[:4] == b"\x7fELF"
    assert b"/ld-" not in program
    assert len(program) < 200_000
