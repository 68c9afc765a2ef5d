"""Directories that appear whole or not at all, and are never written again (I1, I2).

Kernels and images are made here. Two processes that make the same one at once don't disturb each other: the
first to rename wins, and the other uses that result.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_TEMPORARY: Final = ".making-"
_ABANDONED_AFTER_S: Final = 3600


@contextmanager
def published_directory(target: Path) -> Iterator[Path]:
    """Yield an empty temporary directory to fill, which becomes `target` at the end, synced, its files 0444.

    If `target` exists by then, the new directory is deleted: the caller has to look at `target` itself. After
    an exception nothing is left. The directory of a killed process is deleted an hour later.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _gc(target.parent)
    temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=target.parent))
    try:
        yield temporary
        _seal(temporary)
        try:
            temporary.rename(target)
        except OSError:
            if not target.is_dir():
                raise
        else:
            sync(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_file(target: Path, text: str) -> None:
    """Write a small file so that readers see either the old text or the new text.

    Not synced: for notes that can be lost.
    """
    handle, temporary = tempfile.mkstemp(prefix=_TEMPORARY, dir=target.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def withdraw(target: Path) -> None:
    """Rename a damaged directory away in one step, then delete it.

    Hard links to its files stay.
    """
    aside = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=target.parent))
    try:
        target.rename(aside)
    except FileNotFoundError:
        pass
    shutil.rmtree(aside, ignore_errors=True)


def sync(path: Path) -> None:
    """fsync(2) of a file or directory."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _seal(directory: Path) -> None:
    for parent, _subdirectories, files in os.walk(directory, topdown=False):
        for name in files:
            (Path(parent) / name).chmod(0o444)
            sync(Path(parent) / name)
        Path(parent).chmod(0o755)
        sync(Path(parent))


def _gc(parent: Path) -> None:
    for left in parent.glob(f"{_TEMPORARY}*"):
        try:
            if left.stat().st_mtime < time.time() - _ABANDONED_AFTER_S:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        except OSError:
            continue  # another user's, or gone: the next publication looks again
