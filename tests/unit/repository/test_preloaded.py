"""Programs that begin with their imports done are processes like others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import preloaded

MODULE = "tests.unit.repository.test_preloaded"


def main() -> int:
    """What is preloaded: does what its first word says."""
    match sys.argv[1:]:
        case ["echo", *words]:
            print(*words, Path.cwd(), os.environ.get("A_WORD"), sys.stdin.read(), flush=True)
            os.write(2, b"to standard error\n")
            return 7
        case ["raise"]:
            raise ValueError("of the program's own")
        case ["exit"]:
            sys.exit(3)
        case ["kill"]:
            os.kill(os.getpid(), signal.SIGKILL)
        case ["sleep"]:
            print(os.getpid(), flush=True)
            signal.pause()
        case ["much"]:
            print("x" * 1_000_000)
    return 0


def run(*words: str, limit_s: float = 60, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    return preloaded.run(
        *(MODULE, words), environment={"A_WORD": "given"}, limit_s=limit_s, stdin=stdin, directory=Path("/")
    )


def test_arguments_environment_directory_streams_and_exit_code() -> None:
    done = run("echo", "a", "ü", stdin=b"from standard input")
    assert done.stdout.decode() == "a ü / given from standard input\n"
    assert done.stderr == b"to standard error\n"
    assert done.returncode == 7
    assert run("echo").stdout == b"/ given \n", "and nothing of the one before"
    assert len(run("much").stdout) == 1_000_001
    assert run("much", stdin=bytes(1_000_000)).returncode == 0, "nobody reads it"


def test_ends() -> None:
    done = run("raise")
    assert done.returncode == 1
    assert done.stderr.endswith(b"ValueError: of the program's own\n")
    assert run("exit").returncode == 3
    assert run("kill").returncode == -signal.SIGKILL


@pytest.mark.slow
def test_a_program_that_takes_too_long_is_killed() -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        run("sleep", limit_s=1)
    assert run("exit").returncode == 3


def test_what_an_interpreter_reads_as_it_starts() -> None:
    assert preloaded.can_run({**os.environ, "RAMET_HOME": "/x"})
    assert not preloaded.can_run({**os.environ, "PYTHONUTF8": "0"})
    assert not preloaded.can_run({**os.environ, "LC_ALL": "tr_TR"})
