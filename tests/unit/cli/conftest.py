"""`ramet` as a shell runs it, and filesystems for its homes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.loop_filesystems import full, xfs
from tests.support.shell import Shell, hangs_up, ramet
from tests.support.stored_homes import captured, stored

__all__ = ["captured", "full", "guest", "hangs_up", "ramet", "stored", "xfs"]


@pytest.fixture(scope="module")
def guest(warm_home: Path) -> Iterator[Shell]:
    """`ramet` on the warm home, where the fork `box` runs: shared by a module's tests, removed after them."""
    shell = Shell(warm_home)
    shell("fork", "--name", "box", "warm")
    yield shell
    shell.close()
    shell("rm", "-f", "box")
