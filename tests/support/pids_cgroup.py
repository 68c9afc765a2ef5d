"""Cgroups of tests: a limit on processes that holds for whatever is started in one."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_V1 = Path("/sys/fs/cgroup/pids")
_V2 = Path("/sys/fs/cgroup")


@contextmanager
def pids_cgroup(most: int) -> Iterator[Path]:
    """A cgroup in which at most so many processes and threads live. What is in it afterwards is moved out."""
    root = _V1 if (_V1 / "cgroup.procs").exists() else _V2
    place = root / f"ramet-test-{secrets.token_hex(4)}"
    try:
        place.mkdir()
        (place / "pids.max").write_text(f"{most}\n")
    except OSError as error:
        if place.is_dir():
            place.rmdir()
        pytest.skip(f"no cgroup with a limit on processes can be made here: {error}")
    try:
        yield place
    finally:
        for pid in (place / "cgroup.procs").read_text().split():
            (root / "cgroup.procs").write_text(pid)
        place.rmdir()


def inside(cgroup: Path, *command: str) -> list[str]:
    """`command`, as the only process of that cgroup at first."""
    return ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', os.fspath(cgroup), *command]
