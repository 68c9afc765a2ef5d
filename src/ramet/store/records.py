"""The records of a home in SQLite: several processes at once, no daemon.

WAL mode (sqlite.org/wal.html): readers never wait, writers wait for each other. A write transaction holds no
slow I/O.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from ramet.errors import NameTakenError, NotFoundError, StoreError
from ramet.model.record import Record
from ramet.store.migrations import MIGRATIONS

_BUSY_S: Final = 20.0


class Store:
    """One connection to a home's database, usable from any thread.

    Methods raise `StoreError` when the database is damaged, newer than this ramet, or can't be written; it is
    unchanged then.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        with self._explained():
            self._db = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
            try:
                self._prepare()
            except BaseException:
                self._db.close()
                raise

    def _prepare(self) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")
        if self._version() < len(MIGRATIONS):
            with self._transaction(durable=True):
                # Asked again inside: another process may have migrated while this one waited.
                for number, script in enumerate(MIGRATIONS[self._version() :], start=self._version() + 1):
                    for statement in filter(str.strip, script.split(";")):
                        self._db.execute(statement)
                    self._db.execute(f"PRAGMA user_version = {number}")
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
        with self._lock, self._explained(), self._transaction(durable=durable):
            record = function(self._read(instance_id))
            self._db.execute("UPDATE instance SET body = ? WHERE id = ?", (_encode(record), instance_id))
            return record

    def remove(self, instance_id: str, *, only_if: Callable[[Record], bool] | None = None) -> Record | None:
        """Forget an instance and return its record as it then was; None when it is unknown or `only_if` says
        no.

        `only_if` runs inside the write transaction, like the function of `change`.
        """
        with self._lock, self._explained(), self._transaction():
            row = self._db.execute("SELECT body FROM instance WHERE id = ?", (instance_id,)).fetchone()
            if row is None or (only_if is not None and not only_if(_decode(row[0]))):
                return None
            self._db.execute("DELETE FROM instance WHERE id = ?", (instance_id,))
            return _decode(row[0])

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
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

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
