"""Jobs on the memory of a capture: compress, unpack, compact. One process at a time.

The job is a file in the home, named by the capture's id and locked by the working process. The file shows
what a killed process left.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Final, Literal

from ramet.engine.context import Context
from ramet.engine.manifest import Manifest, read_manifest
from ramet.errors import LockBusyError, RametError, WrongStateError
from ramet.model.schema import CompressionState
from ramet.paths import CONFIRMED_FILE, MEM_FILE, Home
from ramet.progress import report
from ramet.system.files import TEMPORARY_PREFIX, filesystem_errors
from ramet.system.locks import file_lock

Kind = Literal["compress", "unpack", "compact"]

TEMPORARY: Final = f"{TEMPORARY_PREFIX}pack-"
"""Prefix of files that are being made, in the capture's directory."""
_CANCELLED: Final = b"cancelled"
COMPACTION_S: Final = 60.0
"""Longest wait for the home's worker, whose compaction no user asked for."""


class MemoryJob:
    """Work of this process on a capture's memory."""

    def __init__(self, descriptor: int, name: str) -> None:
        self._descriptor = descriptor
        self._name = name

    def require(self) -> None:
        """Raise `WrongStateError` when the work isn't wanted any more."""
        if os.pread(self._descriptor, len(_CANCELLED), 0) == _CANCELLED:
            raise WrongStateError(
                f"{self._name} was restored, rewound to or stopped while its memory was being worked on",
                hint="run the command again when that is done",
            )


@asynccontextmanager
async def memory_job(
    home: Home, directory: Path, kind: Kind, *, name: str, wait_s: float
) -> AsyncIterator[MemoryJob]:
    """Be the only one who works on the capture in `directory` inside. `name` is for messages.

    Raises `LockBusyError` when another one still does after `wait_s`, or after a while if that only compacts
    it; `FilesystemError`.
    """
    path = home.compressing / directory.name
    busy = LockBusyError(
        f"the memory of {name} is being compressed or unpacked by another call", hint="try again later"
    )
    async with AsyncExitStack() as leaving:
        with filesystem_errors("make", path):
            home.compressing.mkdir(mode=0o700, exist_ok=True)
            if wait_s and _job_at(path) == b"compact":
                wait_s = max(wait_s, COMPACTION_S)
                report("waiting for its compaction")
            held = await leaving.enter_async_context(file_lock(path, wait_s=wait_s, busy=busy))
            leaving.callback(path.unlink, missing_ok=True)
            os.ftruncate(held, 0)
            os.pwrite(held, kind.encode(), 0)
            gc_directory(directory)  # leftovers of a killed job
            leaving.callback(gc_directory, directory)  # of this one, wherever it failed or was cancelled
        yield MemoryJob(held, name)


def _job_at(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""  # no process works


def is_compressing(home: Home, directory: Path) -> bool:
    """Tell whether a process compresses the memory of that capture now."""
    return _is_under_way(home, directory, (b"compress",))


def _is_under_way(home: Home, directory: Path, jobs: Sequence[bytes]) -> bool:
    try:
        descriptor = os.open(home.compressing / directory.name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False  # no process, or none that is visible here
    try:
        if os.pread(descriptor, 64, 0) not in jobs:
            return False
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True  # it is held
    finally:
        os.close(descriptor)
    return False


def compression_of(context: Context, directory: Path, manifest: Manifest) -> CompressionState:
    """Return the state of a capture's memory for display."""
    if is_compressing(context.home, directory):
        return "compressing"
    return "raw" if manifest.memory.compressed is None else "compressed"


def cancel(home: Home, directory: Path, *, also_unpacking: bool = False) -> None:
    """Ask the process that compresses the memory of that capture to stop. Doesn't wait."""
    jobs: tuple[bytes, ...] = (b"compress", b"unpack") if also_unpacking else (b"compress",)
    if not _is_under_way(home, directory, jobs):
        return
    with suppress(OSError):  # it has just come to its end: then there is nothing to cancel
        descriptor = os.open(home.compressing / directory.name, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.pwrite(descriptor, _CANCELLED, 0)
        finally:
            os.close(descriptor)


async def gc(home: Home) -> None:
    """Remove what killed processes left in the middle of their work: one listing where there was none."""
    try:
        names = os.listdir(home.compressing)  # noqa: PTH208 - when any home is opened
    except OSError:
        return  # nothing has ever been compressed here
    for name in names:
        with suppress(LockBusyError):  # it lives
            async with file_lock(home.compressing / name, wait_s=0):
                for directory in (home.snapshot(name), home.instance(name)):
                    gc_directory(directory)
                (home.compressing / name).unlink(missing_ok=True)


def gc_directory(directory: Path) -> None:
    """Remove files of memory in a capture's directory that its manifest doesn't name, and half-made ones.

    The caller holds the job.
    """
    # No other prefix: who captures anew into the directory meanwhile has temporary files there, too.
    merged = f"{TEMPORARY_PREFIX}{MEM_FILE}-{'?' * 8}-"  # by a compaction, which has the job, too
    for half_made in (TEMPORARY, f"{TEMPORARY_PREFIX}{CONFIRMED_FILE}", merged):
        for left in directory.glob(f"{half_made}*"):
            with suppress(OSError):  # a directory that a VMM has made, say: it goes with the capture
                left.unlink()
    memory = list(directory.glob(f"{MEM_FILE}-*"))
    if memory:
        with suppress(RametError):  # it can't be told what belongs to it: it goes with the directory
            known = read_manifest(directory).files
            for file in memory:
                if file.name not in known:
                    with suppress(OSError):  # as above
                        file.unlink()
