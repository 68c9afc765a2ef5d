"""The downloads that are kept, and their removal.

An image that was built needs no download any more. Documents and archives of layers are kept all the same
until they are more than `KEPT_BYTES`: other images may have a small layer in common, and a push sends them.
Then the least recently used go first. Pulls and builds share a lock on the directory that a removal holds
alone: no archive vanishes before it is unpacked.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from ramet.errors import LockBusyError
from ramet.system import threads
from ramet.system.files import allocated_bytes, filesystem_errors
from ramet.system.locks import inode_lock
from ramet.units import GIB

KEPT_BYTES: Final = 4 * GIB
_USE_WAIT_S: Final = 3600.0
_CLEAR_WAIT_S: Final = 60.0


@asynccontextmanager
async def using(directory: Path) -> AsyncIterator[None]:
    """Keep all downloads there inside. Nests. Raises `FilesystemError`, `LockBusyError`."""
    with filesystem_errors("make", directory):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    busy = LockBusyError("downloads are being removed", hint="try again later")
    async with inode_lock(directory, shared=True, wait_s=_USE_WAIT_S, busy=busy):
        yield


async def trim(directory: Path, *, most_bytes: int = KEPT_BYTES) -> tuple[int, int]:
    """Remove the least recently used downloads until no more than `most_bytes` are left.

    Returns (files, bytes). Nothing is removed while somebody else pulls or builds: the next one does it.
    """
    if not directory.is_dir():
        return 0, 0
    try:
        async with inode_lock(directory, shared=False, wait_s=0):
            return await threads.run(_trim, directory, most_bytes)
    except LockBusyError:
        return 0, 0


async def clear(directory: Path) -> tuple[int, int]:
    """Remove all downloads, unfinished ones as well. Returns (files, bytes).

    Waits for pulls and builds. Raises `LockBusyError`, `FilesystemError`.
    """
    if not directory.is_dir():
        return 0, 0
    busy = LockBusyError(
        "images are being pulled or built", hint="`ramet image prune` works when that has ended"
    )
    async with inode_lock(directory, shared=False, wait_s=_CLEAR_WAIT_S, busy=busy):
        return await threads.run(_trim, directory, 0)


def _trim(directory: Path, most_bytes: int) -> tuple[int, int]:
    found = []
    for place in ("blobs", "partial"):
        for path in (directory / place).glob("**/*"):
            if path.is_file() and not path.is_symlink():
                found.append((path.stat().st_mtime_ns, allocated_bytes(path), path))
    found.sort()
    left = sum(size_bytes for _, size_bytes, _ in found)
    files = freed = 0
    for _, size_bytes, path in found:
        if left <= most_bytes:
            break
        with filesystem_errors("remove", path):
            path.unlink(missing_ok=True)
        left -= size_bytes
        freed += size_bytes
        files += 1
    if not most_bytes:
        for lock in (directory / "locks").glob("*"):  # nobody pulls now
            lock.unlink(missing_ok=True)
    return files, freed
