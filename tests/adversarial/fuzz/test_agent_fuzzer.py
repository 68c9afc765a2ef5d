"""The agent's C for a few seconds under libFuzzer and its sanitizers; `make fuzz` goes on for longer."""

from __future__ import annotations

from pathlib import Path

import pytest

from . import agent_run, corpus

_SECONDS = 2


@pytest.fixture(scope="module", autouse=True)
def _compiler() -> None:
    if (reason := agent_run.why_not()) is not None:
        pytest.skip(reason)


def test_the_seeds_are_what_corpus_py_writes() -> None:
    kept = {path.name: path.read_bytes() for path in corpus.DIRECTORY.iterdir()}
    assert kept == corpus.scripts(), "run `python -m tests.adversarial.fuzz.corpus`"


@pytest.mark.slow
def test_nothing_that_a_fuzzer_finds_breaks_the_agent(tmp_path: Path) -> None:
    program = tmp_path / "agent-fuzzer"
    agent_run.build(program)
    report = agent_run.run(program, tmp_path / "learnt", seconds=_SECONDS, seed=1)
    assert not report.crashed, report.log[-6000:]
    # The seeds alone reach most of it: less would mean that the target no longer gets into the agent.
    assert report.edges > 700
    assert report.frames > 1000


@pytest.fixture(scope="module")
def at_full_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The agent with its own windows, for a script: the fuzzer works on windows made smaller."""
    program = tmp_path_factory.mktemp("replay") / "agent-at-full-size"
    agent_run.build(program, "CFLAGS=-DSCALE=1", "REPLAY=1", "COVERAGE=-O0 -fsanitize=address,undefined")
    return program


@pytest.mark.slow
def test_valid_sessions_pass_with_the_agents_own_windows(at_full_size: Path) -> None:
    finished = agent_run.replay(at_full_size, sorted(corpus.DIRECTORY.iterdir()))
    assert finished.returncode == 0, finished.stderr[-6000:]


@pytest.mark.slow
def test_a_hello_that_overtakes_its_connection_is_answered_once_that_is_there(at_full_size: Path) -> None:
    """HELLO, and requests in the same breath, before the driver says that the host has opened the port; the
    end of file behind them is none. The one that comes later is.
    """
    finished = agent_run.replay(at_full_size, [corpus.DIRECTORY / "overtaking"])
    assert finished.returncode == 0, finished.stderr[-6000:]
    # WELCOME, PONG, LIST_DONE, PONG; STARTED needs a report from the child; after the end nobody is answered.
    assert "frames answered: 4\n" in finished.stderr
