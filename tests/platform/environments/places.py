"""Homes in the places where people have them: other filesystems, odd paths, moved, not writable.

Each is a context manager that is given a directory of the test's own, gives the path of a home which isn't
there yet, and takes away what it mounted, also when the test failed. It skips with the reason where this
machine can't have such a place.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ramet.units import MIB
from tests.support.loop_filesystems import SYSTEM_PATH, mounted

ROOM_BYTES = 640 * MIB


@contextmanager
def plain(directory: Path) -> Iterator[Path]:
    """On the filesystem of the image cache."""
    yield directory / "home"


@contextmanager
def named(directory: Path, name: bytes) -> Iterator[Path]:
    """With an odd name."""
    above = Path(os.fsdecode(os.fsencode(directory) + b"/" + name))
    above.mkdir(parents=True)
    yield above / "home"


@contextmanager
def loop(kind: str, *options: str) -> Iterator[Path]:
    """On a new filesystem of this kind, made with `options`, in a file."""
    mkfs = shutil.which(f"mkfs.{kind}", path=SYSTEM_PATH)
    if mkfs is None:
        pytest.skip(f"mkfs.{kind} isn't installed")
    with tempfile.NamedTemporaryFile(prefix=f"ramet-{kind}-") as image:
        image.truncate(ROOM_BYTES)
        subprocess.run([mkfs, *options, image.name], check=True, capture_output=True, timeout=60)
        with mounted("-t", kind, "-o", "loop", image.name) as place:
            yield place / "home"


@contextmanager
def on_tmpfs(directory: Path) -> Iterator[Path]:
    """In memory."""
    with mounted("-t", "tmpfs", "-o", f"size={ROOM_BYTES}", "tmpfs") as place:
        yield place / "home"


@contextmanager
def on_overlay(directory: Path) -> Iterator[Path]:
    """On an overlay, as a container's root is."""
    lower, upper, work = (directory / name for name in ("lower", "upper", "work"))
    for made in (lower, upper, work):
        made.mkdir()
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    with mounted("-t", "overlay", "-o", options, "overlay") as place:
        yield place / "home"


@contextmanager
def on_fuse(directory: Path) -> Iterator[Path]:
    """On a filesystem that a process serves: bindfs, which shows another directory."""
    if not shutil.which("bindfs"):
        pytest.skip("bindfs isn't installed")
    shown, place = directory / "shown", directory / "fuse"
    shown.mkdir()
    place.mkdir()
    done = subprocess.run(["bindfs", shown, place], capture_output=True, text=True, timeout=30)
    if done.returncode:
        pytest.skip(f"no FUSE mount can be made here: {done.stderr.strip()}")
    try:
        yield place / "home"
    finally:
        subprocess.run(["umount", place], check=True, capture_output=True, timeout=30)


@contextmanager
def read_only(directory: Path) -> Iterator[Path]:
    """On a filesystem that is mounted read-only, where a home has been made before."""
    with mounted("-t", "tmpfs", "-o", "size=16m", "tmpfs") as place:
        (place / "home").mkdir(mode=0o700)
        subprocess.run(["mount", "-o", "remount,ro", place], check=True, capture_output=True, timeout=30)
        yield place / "home"
