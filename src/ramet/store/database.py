"""A home's SQLite database: opened, migrated, and usable on a full disk too.

WAL mode (sqlite.org/wal.html): readers never wait, writers wait for each other. A write transaction holds no
slow I/O.
"""

from __future__ import annotations

import errno
import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from ramet.errors import StoreError, UsageError
from ramet.paths import Home
from ramet.store.boots import note_boot, offer_machine_id
from ramet.store.inherited import close_in_children
from ramet.store.migrations import MIGRATIONS
from ramet.store.wal_index import WalIndex
from ramet.system.files import hint_of
from ramet.system.filesystems import require_local
from ramet.units import KIB

_BUSY_S: Final = 20.0
_RESERVES: Final = {"reserve": 256 * KIB, "reserve-2": 0}
"""Reserved files by the end of their names, with their sizes: bytes, and two inodes."""
_DAMAGED: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
# On a full disk an open or a write fails with any of these (sqlite.org/rescode.html), by where it happens.
_PERHAPS_FULL: Final = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN})

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_TRIES_WHEN_FULL: Final = 8
_OTHERS_S: Final = (0.002, 0.04)

T = TypeVar("T")


def _is_perhaps_full(error: sqlite3.OperationalError | OSError) -> bool:
    if isinstance(error, OSError):
        return error.errno in _FULL
    return error.sqlite_errorcode & 0xFF in _PERHAPS_FULL


class Database:
    """A connection to a home's database, usable from any thread.

    Methods raise `StoreError` when the database is damaged, newer than this ramet, or can't be written; the
    database is unchanged then. After `close` they raise `UsageError`.
    """

    def __init__(self, path: Path) -> None:
        require_local([path])
        self._path = path
        self._closed = False
        self.lock = threading.Lock()
        self._reserves = [path.with_name(f"{path.name}-{name}") for name in _RESERVES]
        self._index = WalIndex(path)
        with self.explained():
            self.connection = self.with_reserve(self._open)
        close_in_children(self)
        self._restore_reserve()

    def _open(self) -> sqlite3.Connection:
        with self._index.opening():
            self.connection = sqlite3.connect(
                self._path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
            )
            # A damaged text is one row's trouble: by itself, sqlite3 lets it stop every query that meets it.
            self.connection.text_factory = partial(str, encoding="utf-8", errors="surrogateescape")
            try:
                self.connection.execute("PRAGMA mmap_size = 0")  # a mapped file is a SIGBUS on a bad disk
                self._require_known()  # before anything is written
                self.connection.execute("PRAGMA journal_mode = WAL")
                self._require_known()  # from here on its files are mapped
            except BaseException:
                self.connection.close()
                raise
        try:
            self._prepare()
        except BaseException:
            self._close()
            raise
        return self.connection

    def _close(self) -> None:
        with self._index.closing():
            self.connection.close()

    def _prepare(self) -> None:
        offer_machine_id(self.connection)
        if self._version() < len(MIGRATIONS):
            with self.transaction(durable=True):
                # Asked again inside: another process may have migrated while this one waited.
                if self._version() == 0:
                    self._require_unused_home()
                for number, script in enumerate(MIGRATIONS[self._version() :], start=self._version() + 1):
                    for statement in filter(str.strip, script.split(";")):
                        self.connection.execute(statement)
                    self.connection.execute(f"PRAGMA user_version = {number}")
        self._require_known()
        note_boot(self.connection, self.transaction)

    def _require_known(self) -> None:
        if self._version() > len(MIGRATIONS):
            raise StoreError(
                f"{self._path} was made by a newer ramet (format {self._version()}, known {len(MIGRATIONS)})",
                hint="upgrade ramet, or set RAMET_HOME to another directory",
            )

    def _require_unused_home(self) -> None:
        """Refuse a new database in a home that has instances or snapshots: their records are in another file.

        To the new database each of their directories would be a leftover, to be removed with its VMM.
        """
        home = Home(self._path.parent)
        for kind, directory in (("an instance,", home.instances), ("a snapshot,", home.snapshots)):
            if not directory.is_dir():
                continue
            known = sorted(path.name for path in directory.iterdir() if not path.name.startswith("."))
            if known:
                raise StoreError(
                    f"{self._path} is new or empty, but the home has the directory of {kind} {known[0]}",
                    hint=f"put the {self._path.name} back that belongs to this home, or set RAMET_HOME to "
                    "another directory; nothing has been touched, and its guests run on",
                )

    def _version(self) -> int:
        return int(self.connection.execute("PRAGMA user_version").fetchone()[0])

    def close(self) -> None:
        """Close the connection. Later calls raise `UsageError`."""
        with self.lock:
            self._closed = True
            self._close()
        self._restore_reserve()

    def with_reserve(self, step: Callable[[], T]) -> T:
        """Return the result of `step`. On a full disk, delete the reserve and try again.

        Without the reserve nothing could be removed from a full disk: SQLite needs room to open (the `-shm`
        file) and to delete (the `-wal` file), and an inode for each of the two.
        """
        for tries_left in reversed(range(_TRIES_WHEN_FULL)):
            try:
                done = step()
            except (sqlite3.OperationalError, OSError) as error:
                if tries_left == 0 or not _is_perhaps_full(error):
                    raise
                self._give_up_reserve()
                continue
            if tries_left < _TRIES_WHEN_FULL - 1:
                # At once: a guest whose disk has no room would take it.
                self._restore_reserve()
            return done
        raise AssertionError

    def _give_up_reserve(self) -> None:
        """Delete the reserve; if another process has just deleted it, wait for that process."""
        given = False
        for reserve in self._reserves:
            with suppress(OSError):  # gone already: `given` says whether any was
                reserve.unlink()
                given = True
        if not given:
            time.sleep(random.uniform(*_OTHERS_S))

    def _restore_reserve(self) -> None:
        """Reserve room if none is reserved, as much as there is.

        The room that is left of a deleted reserve isn't for the program that fills the disk.
        """
        for reserve, length_bytes in zip(self._reserves, _RESERVES.values(), strict=True):
            try:
                flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
                descriptor = os.open(reserve, flags, 0o600)
            except OSError:
                return  # the reserve was for that; others report a home that can't be written
            try:
                if os.fstat(descriptor).st_size < length_bytes:
                    os.posix_fallocate(descriptor, 0, length_bytes)
            except OSError:
                pass  # while it is full: the next close of the database tries again
            finally:
                os.close(descriptor)

    @contextmanager
    def transaction(self, *, durable: bool = False) -> Iterator[None]:
        """Run the block in a write transaction, which an exception undoes.

        Durable: on the disk at the end.
        """
        self._index.grow()
        self.connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.connection.execute("COMMIT")
        except BaseException:
            # SQLite itself has rolled back after some errors, such as a full disk's.
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            raise

    def require_open(self) -> None:
        """Raise `UsageError` once it has been closed."""
        if self._closed:
            raise UsageError(
                "the Host that this belongs to was left",
                hint="open a Host again, and ask it for the same thing: host.get(id)",
            )

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Map errors of SQLite and of the disk to `StoreError`."""
        self.require_open()
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"the database {self._path} can't be used: {error.strerror}", hint=hint_of(error)
            ) from error
        except sqlite3.Error as error:
            raise StoreError(
                f"the database {self._path} can't be used: {error}", hint=self._next_step(error)
            ) from error

    def _next_step(self, error: sqlite3.Error) -> str:
        """Return a hint that costs nobody a guest: only the database knows a home's guests and disks."""
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED:
            return (
                f"keep {self._path.name} where it is: the guests run on and nothing has been removed; copy "
                f"the home, then put a good {self._path.name} back, or set RAMET_HOME to another directory"
            )
        return f"check free space and permissions of {self._path.parent}; nothing has been removed"
