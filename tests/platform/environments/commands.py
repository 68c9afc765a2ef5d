"""The same job as `job.py`'s, by the commands, each a process in the surroundings."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from tests.platform.environments.job import STATE
from tests.platform.environments.surroundings import LIMIT_S, Surroundings, slow_pipe
from tests.support.shell import read_terminal

MODULE = ("-m", "ramet.cli.main")
SHOUT = 300_000
"""Bytes that a command in a guest prints: more than any pipe holds."""


@dataclass(frozen=True)
class Outcome:
    """What one command did."""

    words: tuple[str, ...]
    code: int
    out: bytes
    err: str


class Commands:
    """Runs `ramet` in the surroundings, on one home, and looks at what it said."""

    def __init__(
        self,
        surroundings: Surroundings,
        environment: Mapping[str, str],
        *,
        codes: Collection[int] = (0,),
        stdout: str = "pipe",
    ) -> None:
        self._surroundings = surroundings
        self._environment = environment
        self._codes = codes
        self._stdout = stdout

    def __call__(self, *words: str) -> Outcome:
        """Run to the end. Fails the test on an exit code that isn't one of those, and on a traceback."""
        done = self.attempt(*words)
        assert done.code in self._codes, done
        assert "Traceback" not in done.err, done
        return done

    def attempt(self, *words: str) -> Outcome:
        """Run to the end, whatever comes of it."""
        with _stdout(self._stdout) as (descriptor, taken):
            done = self._surroundings.run(*MODULE, *words, stdout=descriptor, environment=self._environment)
        out = done.stdout if done.stdout is not None else b"".join(taken)
        return Outcome(words, done.returncode, out, done.stderr.decode(errors="replace"))

    def json(self, *words: str) -> Any:
        """The document that `--json` prints."""
        return msgspec.json.decode(self(*words, "--json").out)


@contextmanager
def _stdout(kind: str) -> Iterator[tuple[int, list[bytes]]]:
    """A descriptor for standard output, and the pieces that are read from it until the block is left."""
    taken: list[bytes] = []
    match kind:
        case "pipe":
            yield subprocess.PIPE, taken
        case "full":
            with Path("/dev/full").open("wb") as file:
                yield file.fileno(), taken
        case "terminal":
            controller, terminal = os.openpty()
            reader = threading.Thread(target=lambda: taken.extend(read_terminal(controller)), daemon=True)
            reader.start()
            yield terminal, taken
            os.close(terminal)
            reader.join(LIMIT_S)
            os.close(controller)
        case "non-blocking":
            read, write = slow_pipe()
            reader = threading.Thread(target=_read_slowly, args=(read, taken), daemon=True)
            reader.start()
            yield write, taken
            os.close(write)
            reader.join(LIMIT_S)
            os.close(read)


def _read_slowly(descriptor: int, taken: list[bytes]) -> None:
    while piece := os.read(descriptor, 4096):
        taken.append(piece)


def run_commands(ramet: Commands, prefix: str, *, hears: bool = True) -> None:
    """Do the job; what it made is gone afterwards. `hears`: what the commands print can be read."""
    source = f"{prefix}source"
    ramet("run", "-d", "--name", source, "--memory", "128M", "builtin")
    ramet("exec", source, "--", "sh", "-c", f"echo {STATE} > /run/state")
    said = ramet("exec", source, "--", "sh", "-c", f"head -c {SHOUT} /dev/zero")
    if hears:
        assert len(said.out) == SHOUT
    ramet("standby", source)
    ramet("restore", source)
    ramet("snapshot", "create", source, "--name", "kept")
    ramet("fork", "-n", "2", "--name", f"{prefix}early", f"{source}/kept")
    ramet("template", source)
    ramet("fork", "-n", "2", "--name", f"{prefix}late", source)
    forks = [f"{prefix}{kind}-{number}" for kind in ("early", "late") for number in (1, 2)]
    for name in forks:
        said = ramet("exec", name, "--", "cat", "/run/state")
        if hears:
            assert said.out.split() == [STATE.encode()], said
    if hears:
        listed = {instance["name"]: instance for instance in ramet.json("ps", "-a")}
        assert {source, *forks} <= set(listed)
        assert listed[source]["state"] == "template"
    ramet("snapshot", "rm", f"{source}/kept")
    ramet("rm", "-f", source, *forks)


def plain(home: Path) -> Commands:
    """The commands of this test's own environment, on that home."""
    return Commands(Surroundings(python=sys.executable), {"RAMET_HOME": os.fspath(home)})
