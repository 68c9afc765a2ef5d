"""The records of a home in SQLite: several processes at once, no daemon.

WAL mode (sqlite.org/wal.html): readers never wait, writers wait for each other. A write transaction holds no
slow I/O.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from ramet.errors import NameTakenError, NotFoundError, StoreError
from ramet.model.record import Record
from ramet.store.migrations import MIGRATIONS
from ramet.units import KIB

_BUSY_S: Final = 20.0
_RESERVE_BYTES: Final = 256 * KIB
# On a full disk an open or a write fails with any of these (sqlite.org/rescode.html), by where it happens.
_PERHAPS_FULL: Final = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN})

T = TypeVar("T")


class Store:
    """One connection to a home's database, usable from any thread.

    Methods raise `StoreError` when the database is damaged, newer than this ramet, or can't be written; it is
    unchanged then.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._reserve = path.with_name(f"{path.name}-reserve")
        with self._explained():
            self._db = self._with_reserve(self._open)
        self._restore_reserve()

    def _open(self) -> sqlite3.Connection:
        self._db = sqlite3.connect(self._path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            self._prepare()
        except BaseException:
            self._db.close()
            raise
        return self._db

    def _prepare(self) -> None:
        self._require_known()  # before anything is written
        self._db.execute("PRAGMA journal_mode = WAL")
        if self._version() < len(MIGRATIONS):
            with self._transaction(durable=True):
                # Asked again inside: another process may have migrated while this one waited.
                for number, script in enumerate(MIGRATIONS[self._version() :], start=self._version() + 1):
                    for statement in filter(str.strip, script.split(";")):
                        self._db.execute(statement)
                    self._db.execute(f"PRAGMA user_version = {number}")
        self._require_known()

    def _require_known(self) -> None:
        if self._version() > len(MIGRATIONS):
            raise StoreError(
                f"{self._path} was made by a newer ramet (format {self._version()}, known {len(MIGRATIONS)})",
                hint="upgrade ramet, or set RAMET_HOME to another directory",
            )

    def _version(self) -> int:
        return int(self._db.execute("PRAGMA user_version").fetchone()[0])

    def close(self) -> None:
        """Close the connection. Nothing may be asked afterwards."""
        self._db.close()
        self._restore_reserve()

    def add(self, records: Sequence[Record]) -> None:
        """Add all of `records` or none. Raises `NameTakenError` when one of their names is in use."""
        with self._lock, self._explained(), self._transaction():
            for record in records:
                try:
                    self._db.execute(
                        "INSERT INTO instance (id, body) VALUES (?, ?)", (record.id, _encode(record))
                    )
                except sqlite3.IntegrityError as error:
                    raise NameTakenError(
                        f"there is an instance named {record.name} already",
                        hint=f"choose another name, or `ramet rm {record.name}` first",
                    ) from error

    def all(self) -> list[Record]:
        """Every record, oldest first."""
        with self._lock, self._explained():
            rows = self._db.execute("SELECT body FROM instance ORDER BY rowid").fetchall()
            return [_decode(body) for (body,) in rows]

    def get(self, instance_id: str) -> Record:
        """One record. Raises `NotFoundError`."""
        with self._lock, self._explained():
            return self._read(instance_id)

    def change(
        self, instance_id: str, function: Callable[[Record], Record], *, durable: bool = False
    ) -> Record:
        """Replace a record by `function` of itself, atomically, and return the new one.

        `function` runs inside the write transaction: it does no I/O, and whatever it raises leaves the record
        as it was. A `durable` change is on the disk when this returns; others survive a crash of ramet, but
        perhaps not one of the machine.
        """

        def once() -> Record:
            with self._transaction(durable=durable):
                record = function(self._read(instance_id))
                self._db.execute("UPDATE instance SET body = ? WHERE id = ?", (_encode(record), instance_id))
                return record

        with self._lock, self._explained():
            return self._with_reserve(once)

    def remove(self, instance_id: str, *, only_if: Callable[[Record], bool] | None = None) -> Record | None:
        """Forget an instance and return its record as it then was; None when it is unknown or `only_if` says
        no.

        `only_if` runs inside the write transaction, like the function of `change`.
        """

        def once() -> Record | None:
            with self._transaction():
                row = self._db.execute("SELECT body FROM instance WHERE id = ?", (instance_id,)).fetchone()
                if row is None or (only_if is not None and not only_if(_decode(row[0]))):
                    return None
                self._db.execute("DELETE FROM instance WHERE id = ?", (instance_id,))
                return _decode(row[0])

        with self._lock, self._explained():
            return self._with_reserve(once)

    def _with_reserve(self, step: Callable[[], T]) -> T:
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

    def _read(self, instance_id: str) -> Record:
        row = self._db.execute("SELECT body FROM instance WHERE id = ?", (instance_id,)).fetchone()
        if row is None:
            raise NotFoundError(f"instance {instance_id} is gone", hint="`ramet ps -a` lists what there is")
        return _decode(row[0])

    @contextmanager
    def _transaction(self, *, durable: bool = False) -> Iterator[None]:
        self._db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # SQLite itself has rolled back after some errors, a full disk's say
                self._db.execute("ROLLBACK")
            raise

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, msgspec.MsgspecError) as error:
            raise StoreError(
                f"the database {self._path} can't be used: {error}",
                hint="check free space and permissions; a damaged one can be moved away",
            ) from error


def _encode(record: Record) -> str:
    return msgspec.json.encode(record).decode()


def _decode(body: str) -> Record:
    return msgspec.json.decode(body, type=Record)
