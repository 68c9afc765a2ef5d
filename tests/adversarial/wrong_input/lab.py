"""What a wrong request is tried on: a home with a template, instances in several states and two snapshots;
and what a request may not change.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from ramet.paths import INITRAMFS_FILE, KERNEL_FILE
from tests.conftest import living_in
from tests.support.shell import COMMAND, LIMIT_S, Shell, run_command, wait_until

# Made or grown by looking: locks, SQLite's own files, and the logs that are rings.
_NOT_COMPARED = (".lock", "-wal", "-shm", ".log")


class Answer(NamedTuple):
    """What one command gave back."""

    code: int
    out: str
    err: str
    seconds: float


@dataclass
class Attempt:
    """One wrong request: the words, and what is wrong about the world while they are said."""

    words: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    home: Path | None = None
    """Another home than the lab's."""
    command: list[str] = field(default_factory=lambda: COMMAND)


@dataclass
class Lab:
    """The home, and a directory for props.

    Beside the template `warm` there are `stopped`, `failed`, `living` (running) and `asleep` (in standby);
    the last two have a snapshot `base` each.
    """

    shell: Shell
    scratch: Path
    template: Path
    """The directory of the template `warm`."""
    snapshot: Path
    """The directory of `living/base`."""
    exported: Path
    """A file that it was exported to."""

    @property
    def home(self) -> Path:
        """The home of the lab."""
        return self.shell.home

    def ask(self, attempt: Attempt, *more: str) -> Answer:
        """Run it to its end."""
        environment = {**self.shell.environment, **attempt.environment}
        if attempt.home is not None:
            environment["RAMET_HOME"] = str(attempt.home)
        began = time.monotonic()
        verb = 2 if attempt.words[0] == "snapshot" else 1
        words = [*attempt.command, *attempt.words[:verb], *more, *attempt.words[verb:]]
        if attempt.command == COMMAND:
            done = run_command(words[len(COMMAND) :], environment)
        else:
            done = subprocess.run(
                words,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=LIMIT_S,
                check=False,
            )
        return Answer(done.returncode, done.stdout.decode(), done.stderr.decode(), time.monotonic() - began)

    def script(self, name: str, text: str) -> str:
        """An executable shell script; its path."""
        path = self.scratch / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return str(path)

    @contextmanager
    def altered(
        self, part: str, change: Callable[[Path], object], directory: Path | None = None
    ) -> Iterator[None]:
        """A changed copy in the place of a part of the template, or of a snapshot. The published file isn't
        touched.
        """
        published = (directory or self.template) / part
        aside = self.scratch / f"published-{part}"
        published.rename(aside)
        try:
            subprocess.run(["cp", "--sparse=always", "--preserve=all", aside, published], check=True)
            published.chmod(0o644)
            change(published)
            yield
        finally:
            aside.replace(published)


def world(home: Path) -> dict[str, Any]:
    """All that a refused request has to leave alone: files by name, size, time, inode and links; records;
    processes.

    Links of kernel and initramfs aren't counted: they are the image cache's, and other homes come and go.
    """
    files: dict[str, Any] = {}
    for parent, _, names in os.walk(home):
        for name in names:
            path = Path(parent, name)
            if not name.endswith(_NOT_COMPARED) and name != "ramet.db":
                facts = path.lstat()
                files[str(path.relative_to(home))] = (
                    facts.st_size,
                    facts.st_mtime_ns,
                    facts.st_ino,
                    facts.st_nlink if name not in {KERNEL_FILE, INITRAMFS_FILE} else None,
                )
        files[str(Path(parent).relative_to(home)) + "/"] = Path(parent).stat().st_mode
    return {"files": files, "records": records(home / "ramet.db"), "processes": sorted(living_in(home))}


def records(database: Path) -> list[str]:
    """Every record, or the bytes of what isn't a database."""
    if not database.exists() or database.stat().st_size == 0:
        return []
    try:
        connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
        try:
            return [
                row[0]
                for table in ("instance", "snapshot")
                for row in connection.execute(f"SELECT body FROM {table} ORDER BY id")
            ]
        finally:
            connection.close()
    except sqlite3.Error:
        return [database.read_bytes().hex()]


def add_failed(shell: Shell) -> None:
    """The instance `failed`: a fork whose VMM was killed."""
    fork = shell.json("fork", "--name", "failed", "--json", "warm")["forks"][0]
    os.kill(fork["pid"], signal.SIGKILL)
    wait_until(lambda: living_in(shell.home) == [])


def messages(answer: Answer) -> list[dict[str, str]]:
    """The errors in the one JSON document that `--json` printed."""
    document = msgspec.json.decode(answer.out)
    if "error" in document:
        return [document["error"]]
    failed = document.get("forks") or document.get("failed")
    return [fork["error"] for fork in failed]
