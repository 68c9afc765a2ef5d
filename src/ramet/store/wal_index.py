"""The blocks of a database's `-shm` file: allocated before SQLite maps it.

SQLite maps that file (the index of its write-ahead log) and writes through the mapping. It makes the file by
one byte for each 4 KiB, so on a filesystem with smaller blocks most of it is holes. On a full disk a write
into a hole is a SIGBUS, by which the whole process dies. So the file is made here, with all its blocks,
before SQLite opens it, and made longer before SQLite needs that: then a system call fails, with an error.

SQLite empties the file unless a process has it open, which it tells by a lock on one byte of it
(`UNIX_SHM_DMS` in SQLite's os_unix.c). That lock is held here while SQLite opens it, as another reader would.
No descriptor of the file may be closed while SQLite has it open in this process: POSIX drops the process's
locks on the file then (fcntl_locking(2)). So a descriptor is kept per file.

Sources: sqlite.org/walformat.html §2; os_unix.c (`unixLockSharedMemory`, `unixShmMap`); fcntl_locking(2),
"Open file description locks"; ioctl_iflags(2).
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ramet.system.files import allocate, turn_off_copy_on_write
from ramet.units import KIB

_SEGMENT_BYTES: Final = 32 * KIB  # WALINDEX_PGSZ, wal.c
_SEGMENT_FRAMES: Final = 4096  # HASHTABLE_NPAGE, wal.c; the first one has 34 fewer
_FRAME_BYTES: Final = 4096 + 24  # a page and its header
_FIRST_SEGMENTS: Final = 2
_MARGIN_FRAMES: Final = _SEGMENT_FRAMES
"""More frames than any transaction of ramet adds."""
_DEAD_MAN_SWITCH: Final = 128  # UNIX_SHM_DMS, os_unix.c: (22 + 8) * 4 + 8
_LOCK_LIMIT_S: Final = 20.0
_LOCK_POLL_S: Final = 0.005
_OFD_SETLK: Final = getattr(fcntl, "F_OFD_SETLK", None)  # Linux
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass
class _Open:
    """A `-shm` file that databases in this process have open."""

    descriptor: int
    users: int


_open: dict[tuple[int, int], _Open] = {}
"""By device and inode."""
_registry = threading.Lock()


def _forget() -> None:
    """Forget the files in a child of fork(2), because they are the parent's.

    They are closed at the child's exit, and not before. A thread that had the lock isn't there to release it.
    """
    global _registry
    _registry = threading.Lock()
    _open.clear()


os.register_at_fork(after_in_child=_forget)


class WalIndex:
    """The `-shm` file of the database at `path`. Elsewhere than on Linux nothing is done."""

    def __init__(self, path: Path) -> None:
        self._directory = path.parent
        self._database = path
        self._path = path.with_name(f"{path.name}-shm")
        self._wal = path.with_name(f"{path.name}-wal")
        self._identity: tuple[int, int] | None = None
        self._segments = _FIRST_SEGMENTS

    @contextmanager
    def opening(self) -> Iterator[None]:
        """SQLite opens the database inside, and reads from it.

        Raises `OSError` (ENOSPC, EDQUOT, EFBIG) when there is no room for the blocks; nothing is open then.
        """
        with self._alone():
            descriptor = self._prepared()
            try:
                yield
            except BaseException:
                self.close()
                raise
            finally:
                if descriptor is not None:
                    _lock(descriptor, fcntl.F_UNLCK)

    @contextmanager
    def closing(self) -> Iterator[None]:
        """SQLite closes the database inside; the last one to close removes the file."""
        with self._alone():
            yield
        self.close()

    def close(self) -> None:
        """Release the file. Call it only when SQLite hasn't got the file open for this database."""
        with _registry:
            identity, self._identity = self._identity, None
            known = _open.get(identity) if identity is not None else None
            if identity is None or known is None:
                return
            known.users -= 1
            if known.users == 0:
                del _open[identity]
                os.close(known.descriptor)

    def grow(self) -> None:
        """Before a transaction that writes: see that the index may become longer. Raises as `opening`."""
        if self._identity is None:
            return
        try:
            frames = self._wal.stat().st_size // _FRAME_BYTES
        except OSError:
            return  # there is none yet
        needed = (frames + _MARGIN_FRAMES) // _SEGMENT_FRAMES + 1
        if needed <= self._segments:
            return
        with _registry:
            known = _open.get(self._identity)
        if known is not None:
            _allocate(known.descriptor, needed)
            self._segments = needed

    def _prepared(self) -> int | None:
        """Return a descriptor of the file with all blocks allocated, locked as a reader's; else None.

        None means that SQLite has to do without.
        """
        if _OFD_SETLK is None:
            return None
        with _registry:
            try:
                known = self._known()
            except OSError as error:
                if error.errno in _NO_ROOM:
                    raise
                return None  # read-only, not ours: SQLite says so in its own words
            try:
                if _lock(known.descriptor, fcntl.F_WRLCK):
                    # Nobody has it open. What is in it may be of a machine that was switched off.
                    os.ftruncate(known.descriptor, 0)
                    turn_off_copy_on_write(known.descriptor)
                _lock(known.descriptor, fcntl.F_RDLCK)
                _allocate(known.descriptor, self._segments)
            except BaseException:
                _lock(known.descriptor, fcntl.F_UNLCK)
                if known.users == 0:
                    assert self._identity is not None
                    del _open[self._identity]
                    os.close(known.descriptor)
                self._identity = None
                raise
            known.users += 1
            return known.descriptor

    def _known(self) -> _Open:
        """Return the file, opened if no database in this process has it open, made if it doesn't exist."""
        with suppress(FileNotFoundError):
            facts = self._path.lstat()
            self._identity = (facts.st_dev, facts.st_ino)
            if self._identity in _open:
                return _open[self._identity]
        try:
            mode = self._database.stat().st_mode & 0o777
        except FileNotFoundError:
            mode = 0o644  # as SQLite makes a database
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self._path, flags, mode)
        facts = os.fstat(descriptor)
        self._identity = (facts.st_dev, facts.st_ino)
        return _open.setdefault(self._identity, _Open(descriptor, 0))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other ramet processes from opening or closing the database meanwhile.

        The last process to close the database removes the file. Where the directory can't be locked, or a
        process was stopped while it had the lock, the block runs without the lock.
        """
        try:
            descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            yield
            return
        try:
            deadline = time.monotonic() + _LOCK_LIMIT_S
            while time.monotonic() < deadline:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(_LOCK_POLL_S)
                except OSError:
                    break
            yield
        finally:
            os.close(descriptor)


def _allocate(descriptor: int, segments: int) -> None:
    """Give the file that length, if it is shorter, and allocate all its blocks. Its content stays."""
    allocate(descriptor, segments * _SEGMENT_BYTES)


def _lock(descriptor: int, kind: int) -> bool:
    """Lock or unlock the byte by which SQLite tells whether a process has the file open.

    Returns False when others' locks prevent it.
    """
    assert _OFD_SETLK is not None
    # struct flock, fcntl_locking(2): l_type, l_whence, l_start, l_len, l_pid.
    wanted = struct.pack("hhqqi4x", kind, os.SEEK_SET, _DEAD_MAN_SWITCH, 1, 0)
    try:
        fcntl.fcntl(descriptor, _OFD_SETLK, wanted)
    except OSError:
        return False
    return True
