"""Locks between processes, on files: flock(2), which the kernel releases when its holder dies.

A blocked flock can't be cancelled or given a limit (a thread would sit in it), so this tries without
blocking, at growing intervals. The first tries come 1 ms apart, because most of these locks are leases of a
few milliseconds; later tries at most 20 ms, so that an old waiter isn't outrun by a new one.

Lock files are made when missing and never removed, except with their directory; a lock on a file that has
lost its name isn't a lock, and is taken again. Each call opens the file anew: tasks of one process exclude
each other as processes do. Not reentrant.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio

from ramet.concurrency import pauses_s
from ramet.errors import LockBusyError, RametError
from ramet.system import forked
from ramet.system.ownership import not_ours, user_name

_FIRST_WAIT_S = 0.001
_LONGEST_WAIT_S = 0.020


@asynccontextmanager
async def file_lock(path: Path, *, wait_s: float, busy: RametError | None = None) -> AsyncIterator[int]:
    """Hold the exclusive lock on `path` inside; wait for it at most `wait_s` (0: one try).

    Yields the descriptor that holds the lock: a process that inherits it keeps holding the lock after this
    process's death, until its own end.

    Raises `busy`, by default a `LockBusyError` that names the path, when the wait is over; `UnavailableError`
    when the file is another user's; `OSError` when the file can't be made (its directory is gone). A call
    that is cancelled while it waits holds nothing; a block that is cancelled or fails releases the lock.
    """
    pauses = _pauses_s(path, wait_s, busy)
    while (held := _try(path)) is None:  # noqa: ASYNC110 - other processes set no event
        await anyio.sleep(next(pauses))
    try:
        yield held
    finally:
        _release(held)


@contextmanager
def file_lock_sync(path: Path, *, wait_s: float, busy: RametError | None = None) -> Iterator[None]:
    """Hold a lock as `file_lock` does, for plain code. Blocks the thread; never use it on an event loop's."""
    pauses = _pauses_s(path, wait_s, busy)
    while (held := _try(path)) is None:
        time.sleep(next(pauses))
    try:
        yield
    finally:
        _release(held)


@asynccontextmanager
async def inode_lock(
    path: Path, *, shared: bool, wait_s: float, busy: RametError | None = None
) -> AsyncIterator[None]:
    """Hold the lock on an existing directory or file inside, alone or `shared` with others that share it.

    Nothing is written for it. Errors as `file_lock`; `OSError` when the inode is gone.
    """
    pauses = _pauses_s(path, wait_s, busy)
    how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    while (held := _try_inode(path, how)) is None:  # noqa: ASYNC110 - as above
        await anyio.sleep(next(pauses))
    try:
        yield
    finally:
        _release(held)


def _try_inode(path: Path, how: int) -> int | None:
    # Where a VMM has worked, FIFOs may lie: they aren't waited for.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno == errno.EWOULDBLOCK:
            return None
        raise
    return forked.keep_from_children(descriptor)


def _pauses_s(path: Path, wait_s: float, busy: RametError | None) -> Iterator[float]:
    """Give the pause before each further try. Raises `busy` when the time is over."""

    def late() -> RametError:
        hint = "try again later"
        return busy or LockBusyError(f"{path} is locked by another task or process", hint=hint)

    return pauses_s(_FIRST_WAIT_S, _LONGEST_WAIT_S, within_s=wait_s, late=late, growth=1.5)


def _try(path: Path) -> int | None:
    """Return the descriptor that holds the lock, or None when another holds it."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except PermissionError as error:
            raise not_ours(str(path), _owner_of(path)) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(descriptor, path):
                return forked.keep_from_children(descriptor)
        except OSError as error:
            os.close(descriptor)
            if error.errno == errno.EWOULDBLOCK:
                return None
            raise
        os.close(descriptor)


def _owner_of(path: Path) -> str:
    for place in (path, path.parent):
        try:
            return user_name(place.lstat().st_uid)
        except OSError:
            continue  # its directory may tell
    return "another user"


def _is_still(descriptor: int, path: Path) -> bool:
    """Tell whether `path` still names the open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _release(descriptor: int) -> None:
    if not forked.is_ours(descriptor):
        return  # in a child that was forked inside: the lock is its parent's
    # Closing alone would leave the lock with a process that was forked meanwhile and hasn't executed yet.
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    forked.close(descriptor)
