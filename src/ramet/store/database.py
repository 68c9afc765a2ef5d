"""A home's SQLite database: opened, migrated, and usable on a full disk too.

WAL mode (sqlite.org/wal.html): readers never wait, writers wait for each other. A write transaction holds no
slow I/O.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from ramet.errors import StoreError
from ramet.host.filesystems import require_local
from ramet.store.boots import note_boot, offer_machine_id
from ramet.store.inherited import close_in_children
from ramet.store.migrations import MIGRATIONS
from ramet.units import KIB

_BUSY_S: Final = 20.0
_RESERVE_BYTES: Final = 256 * KIB
# On a full disk an open or a write fails with any of these (sqlite.org/rescode.html), by where it happens.
_PERHAPS_FULL: Final = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN})

T = TypeVar("T")


class Database:
    """One connection to a home's database, usable from any thread.

    Methods raise `StoreError` when the database is damaged, newer than this ramet, or can't be written; it is
    unchanged then.
    """

    def __init__(self, path: Path) -> None:
        require_local([path])
        self._path = path
        self.lock = threading.Lock()
        self._reserve = path.with_name(f"{path.name}-reserve")
        with self.explained():
            self.connection = self.with_reserve(self._open)
        close_in_children(self)
        self._restore_reserve()

    def _open(self) -> sqlite3.Connection:
        self.connection = sqlite3.connect(
            self._path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
        )
        try:
            self._prepare()
        except BaseException:
            self.connection.close()
            raise
        return self.connection

    def _prepare(self) -> None:
        self._require_known()  # before anything is written
        offer_machine_id(self.connection)
        self.connection.execute("PRAGMA journal_mode = WAL")
        if self._version() < len(MIGRATIONS):
            with self.transaction(durable=True):
                # Asked again inside: another process may have migrated while this one waited.
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

    def _version(self) -> int:
        return int(self.connection.execute("PRAGMA user_version").fetchone()[0])

    def close(self) -> None:
        """Close the connection. Nothing may be asked afterwards."""
        self.connection.close()
        self._restore_reserve()

    def with_reserve(self, step: Callable[[], T]) -> T:
        """What `step` gives; on a full disk it has a second try, with the reserve given up for it.

        Without that nothing could be removed from a full disk: SQLite needs room to open (the `-shm` file)
        and to delete (the `-wal` file).
        """
        try:
            return step()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in _PERHAPS_FULL or not self._reserve.exists():
                raise
            os.truncate(self._reserve, 0)
            return step()

    def _restore_reserve(self) -> None:
        """Set room aside if that hasn't been done and there is some."""
        try:
            descriptor = os.open(self._reserve, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError:
            return
        try:
            if os.fstat(descriptor).st_size < _RESERVE_BYTES:
                os.posix_fallocate(descriptor, 0, _RESERVE_BYTES)
        except OSError:
            pass  # while it is full, that is what the reserve was for: the next one to close tries again
        finally:
            os.close(descriptor)

    @contextmanager
    def transaction(self, *, durable: bool = False) -> Iterator[None]:
        """One write transaction; what is raised inside undoes it. Durable: on the disk when it ends."""
        self.connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.connection.execute("COMMIT")
        except BaseException:
            # SQLite itself has rolled back after some errors, a full disk's say.
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            raise

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Errors of SQLite, and bodies that can't be read, as `StoreError`."""
        try:
            yield
        except (sqlite3.Error, msgspec.MsgspecError) as error:
            raise StoreError(
                f"the database {self._path} can't be used: {error}",
                hint="check free space and permissions; a damaged one can be moved away",
            ) from error
