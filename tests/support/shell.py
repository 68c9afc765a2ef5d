"""The real `ramet`, as a shell runs it, on a home of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.conftest import assert_nothing_left
from tests.support import preloaded

COMMAND = [sys.executable, "-m", "ramet.cli.main"]
LIMIT_S = 120


@pytest.fixture(autouse=True, scope="session")
def hangs_up() -> Iterator[None]:
    """What is started here dies of SIGHUP, as from a terminal: under nohup(1) it would inherit that it
    doesn't.
    """
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def run_command(
    words: Sequence[str], environment: Mapping[str, str], stdin: bytes | None = None
) -> subprocess.CompletedProcess[bytes]:
    """`ramet WORDS` to its end, as a process of its own; its imports have been done where they can be."""
    if preloaded.can_run(environment):
        return preloaded.run(COMMAND[-1], words, environment=environment, limit_s=LIMIT_S, stdin=stdin)
    return subprocess.run(
        [*COMMAND, *words],
        env=environment,
        input=stdin or b"",
        capture_output=True,
        timeout=LIMIT_S,
        check=False,
    )


class Shell:
    """Runs `ramet` with one home."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.environment = {**os.environ, "RAMET_HOME": str(home)}
        self.environment.pop("RAMET_DEBUG", None)
        self._started: list[subprocess.Popen[bytes]] = []

    def __call__(
        self, *words: str, stdin: bytes | None = None, code: int = 0
    ) -> subprocess.CompletedProcess[bytes]:
        """Run to the end; `stdin` is `/dev/null` unless given. Fails the test on another exit code."""
        done = run_command(words, self.environment, stdin)
        assert done.returncode == code, (words, done.returncode, done.stdout, done.stderr)
        assert b"Traceback" not in done.stderr
        return done

    def json(self, *words: str, code: int = 0, stdin: bytes | None = None) -> Any:
        """The one document that `--json` prints."""
        done = self(*words, code=code, stdin=stdin)
        assert done.stdout.count(b"\n") == 1, done.stdout
        return msgspec.json.decode(done.stdout)

    def start(self, *words: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start it and don't wait."""
        options = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            **options,
        }
        process = subprocess.Popen([*COMMAND, *words], env=self.environment, **options)
        self._started.append(process)
        return process

    def close(self) -> None:
        """End what was started and still runs, as after a test that failed."""
        for process in self._started:
            process.kill()
            process.communicate(timeout=LIMIT_S)


@pytest.fixture
def ramet(home: Path) -> Iterator[Shell]:
    """`ramet` on an empty home."""
    shell = Shell(home)
    yield shell
    shell.close()


@pytest.fixture(scope="module")
def guest(homes: Path) -> Iterator[Shell]:
    """`ramet` on a home in which `box` runs; shared by a module's tests, removed after them."""
    home = homes / f"guest-{os.urandom(4).hex()}"
    shell = Shell(home)
    started = subprocess.run(
        [*COMMAND, "run", "--name", "box", "--memory", "128M", "builtin"],
        env=shell.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=LIMIT_S,
        check=False,
    )
    if started.returncode == 5:
        pytest.skip(started.stderr.decode())
    assert started.returncode == 0, started.stderr
    yield shell
    shell.close()
    if ids := shell("ps", "-aq").stdout.split():
        shell("rm", "-f", *(container_id.decode() for container_id in ids))
    assert_nothing_left(home)


def wait_until(what: Callable[[], bool], limit_s: float = 30) -> None:
    """Wait for something that no event tells from outside of a process."""
    end = time.monotonic() + limit_s
    while not what():
        assert time.monotonic() < end, "it didn't happen in time"
        time.sleep(0.05)


def interrupt(process: subprocess.Popen[bytes], number: int = signal.SIGINT) -> int:
    """Signal it and give its exit code."""
    process.send_signal(number)
    process.communicate(timeout=LIMIT_S)
    return process.returncode


def read_terminal(controller: int) -> Iterator[bytes]:
    """What was written to a pseudo-terminal, until its other side is closed."""
    while True:
        try:
            yield os.read(controller, 4096)
        except OSError:  # EIO: the other side has been closed (pty(7))
            return
