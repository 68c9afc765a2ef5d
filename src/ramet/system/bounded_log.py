"""Bounded logs: the unbounded output of a guest or a VMM, in a plain file that nobody watches.

There is no daemon, so two things bound a log. The kernel stops the writer for good at its RLIMIT_FSIZE, which
is set when a VMM is spawned. And ramet processes that pass by call `trim`: a log that has grown too large is
cut to its end, which is moved to `NAME.1`; a writer that appends (O_APPEND) continues at the beginning of the
emptied file. A writer that doesn't append (Firecracker, to its log) continues behind a hole, up to its limit.

The content of these files was chosen by a guest. It is bytes; `ramet.text.printable` makes them fit for a
terminal.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path

from ramet.system.files import STAT_BLOCK_BYTES
from ramet.units import KIB, MIB

KEEP_BYTES = 256 * KIB
ABOVE_BYTES = MIB
_CHUNK_BYTES = 64 * KIB


def previous(log: Path) -> Path:
    """Return the path of the part that was cut off last: `console.log.1`."""
    return log.with_name(log.name + ".1")


def trim(log: Path, *, keep_bytes: int = KEEP_BYTES, above_bytes: int = ABOVE_BYTES) -> bool:
    """Cut a log of more than `above_bytes` to its last `keep_bytes`, and tell whether that was done.

    The kept bytes begin with a whole line. Any number of processes may try at once: one does it, the others
    leave it to that process. Lines that are written between the last copy and the cut are lost; after a crash
    in between, some lines are in both parts. A missing log needs no trimming. Raises `OSError` (a full disk):
    the log is unchanged then.
    """
    try:
        descriptor = open_regular(log, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        if _occupied_bytes(descriptor) <= above_bytes or not _lock(descriptor):
            return False
        if _occupied_bytes(descriptor) <= above_bytes:
            return False  # another process has just done it
        _save_end(descriptor, os.fstat(descriptor).st_size, keep_bytes, previous(log))
        os.ftruncate(descriptor, 0)
        return True
    finally:
        os.close(descriptor)


def tail(log: Path, max_bytes: int) -> bytes:
    """Return the last `max_bytes` of a log and the part that was cut off last; empty when there is no log.

    These are a guest's own bytes: don't interpret them, don't print them raw. Raises `OSError`.
    """
    for _ in range(3):
        before = _identity(previous(log))
        current = last_bytes(log, max_bytes)
        earlier = last_bytes(previous(log), max_bytes - len(current))
        if before == _identity(previous(log)):
            break  # else a trim came between: the two parts may overlap
    return earlier + current


def since(log: Path, start: int, max_bytes: int) -> bytes:
    """Return the last `max_bytes` that were written to a log behind its byte `start`.

    The result of a log that was cut since then may begin with older bytes. Raises `OSError`.
    """
    try:
        size_bytes = log.stat().st_size
    except FileNotFoundError:
        return b""
    if size_bytes < start:
        return tail(log, max_bytes)
    return last_bytes(log, min(max_bytes, size_bytes - start))


def open_regular(path: Path, flags: int) -> int:
    """Open a regular file and nothing else; the caller closes the descriptor. Raises `OSError`.

    A VMM can write to its log's directory, so links and FIFOs may lie there.
    """
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return descriptor


def _occupied_bytes(descriptor: int) -> int:
    """Return the log's size on disk: a writer that doesn't append (Firecracker) leaves a hole after a cut."""
    facts = os.fstat(descriptor)
    return min(facts.st_size, facts.st_blocks * STAT_BLOCK_BYTES)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _save_end(descriptor: int, size_bytes: int, keep_bytes: int, target: Path) -> None:
    """Copy the last `keep_bytes`, and bytes appended meanwhile (as much again, at most), to `target`."""
    offset = max(0, size_bytes - keep_bytes - 1)  # one more: the line end before a whole line
    limit, cut = offset + 2 * keep_bytes, offset > 0
    temporary = target.with_name(target.name + ".tmp")  # one name will do, the lock is ours
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(temporary, flags, 0o600), "wb") as saved:
            while offset < limit and (
                data := os.pread(descriptor, min(_CHUNK_BYTES, limit - offset), offset)
            ):
                offset += len(data)
                if cut:
                    data = data[data.find(b"\n") + 1 :]  # all of it, if there is no line end
                    cut = False
                saved.write(data)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def last_bytes(path: Path, max_bytes: int) -> bytes:
    """Return the last `max_bytes` of a file; empty when there is none. Raises `OSError`."""
    if max_bytes <= 0:
        return b""
    try:
        descriptor = open_regular(path, os.O_RDONLY)
    except FileNotFoundError:
        return b""
    try:
        offset = max(0, os.fstat(descriptor).st_size - max_bytes)
        return os.pread(descriptor, max_bytes, offset)
    finally:
        os.close(descriptor)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns
