"""Real filesystems, mounted for a test: one with reflinks, one that is full at once. Both want root."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ramet.units import MIB

SYSTEM_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


@contextmanager
def mounted(*arguments: str) -> Iterator[Path]:
    """What `mount ARGUMENTS… DIRECTORY` makes, until it is left, however. Skips the test where it can't."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("mounting a filesystem needs Linux and root")
    place = Path(tempfile.mkdtemp(prefix="ramet-mount-"))
    try:
        made = subprocess.run(["mount", *arguments, place], capture_output=True, text=True, timeout=60)
        if made.returncode:
            pytest.skip(f"can't mount: {made.stderr.strip()}")
        try:
            yield place
        finally:
            subprocess.run(["umount", place], check=True, capture_output=True, timeout=60)
    finally:
        place.rmdir()


@pytest.fixture(scope="session")
def xfs() -> Iterator[Path]:
    """A directory on an XFS with reflinks."""
    mkfs = shutil.which("mkfs.xfs", path=SYSTEM_PATH)
    if mkfs is None:
        pytest.skip("mkfs.xfs isn't installed (package xfsprogs)")
    with tempfile.NamedTemporaryFile(prefix="ramet-xfs-") as image:
        image.truncate(512 * MIB)
        subprocess.run(
            [mkfs, "-q", "-m", "reflink=1", image.name], check=True, capture_output=True, timeout=60
        )
        with mounted("-t", "xfs", "-o", "loop", image.name) as place:
            yield place


@pytest.fixture
def full() -> Iterator[Path]:
    """A directory on a filesystem of 1 MiB."""
    with mounted("-t", "tmpfs", "-o", "size=1m", "tmpfs") as place:
        yield place
