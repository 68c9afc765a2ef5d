"""The records of a home: instances and snapshots, for several processes at once, without a daemon."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Generic, Protocol, TypeVar

import msgspec

from ramet.errors import NameTakenError, NotFoundError, RametError, StoreError, UnreadableError, UsageError
from ramet.model.names import check_name
from ramet.model.record import ProcessRef, Record, Unreadable
from ramet.model.schema import Receipt
from ramet.model.snapshot import SnapshotRecord
from ramet.store.database import Database
from ramet.text import encode_json


class _Row(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str | None: ...


RowT = TypeVar("RowT", bound=_Row)
_UNFIT: Final = (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError)
"""Exceptions of encoding and decoding for content that doesn't have its type."""


class Table(Generic[RowT]):
    """The records of a kind, each a JSON document. Errors as `Database`.

    `what` is the kind's word in messages. A row that can't be read affects no other row: it is left
    unchanged, `all` omits it, `unreadable` lists it, and every operation on it raises `UnreadableError`.
    """

    def __init__(self, database: Database, table: str, kind: type[RowT], *, what: str) -> None:
        self._database = database
        self._table = table
        self._kind = kind
        self._what = what

    def add(self, records: Sequence[RowT]) -> None:
        """Add all of `records` or none. Raises `NameTakenError` when one of their names is in use."""
        with self._database.lock, self._database.explained(), self._database.transaction():
            for record in records:
                with self._names_taken(record):
                    self._database.connection.execute(
                        f"INSERT INTO {self._table} (id, body) VALUES (?, ?)",
                        (record.id, self._encode(record)),
                    )

    def rows(self) -> tuple[list[RowT], list[Unreadable]]:
        """Return all records, oldest first, and the rows that can't be read, at the same moment."""
        with self._database.lock, self._database.explained():
            rows = self._database.connection.execute(
                f"SELECT id, body FROM {self._table} ORDER BY rowid"
            ).fetchall()
        records: list[RowT] = []
        unreadable: list[Unreadable] = []
        for row_id, body in rows:
            try:
                records.append(self._decoded(row_id, body))
            except _UNFIT as error:
                unreadable.append(_what_is_left(row_id, body, error))
        return records, unreadable

    def all(self) -> list[RowT]:
        """Return all records that can be read, oldest first."""
        return self.rows()[0]

    def unreadable(self) -> list[Unreadable]:
        """Return the rows that can't be read."""
        return self.rows()[1]

    def names(self) -> list[str]:
        """List the names that are taken, also those of rows that can't be read."""
        records, unreadable = self.rows()
        return [record.name for record in records if record.name is not None] + [
            row.name for row in unreadable
        ]

    def get(self, row_id: str) -> RowT:
        """Return a record. Raises `NotFoundError`, `UnreadableError`."""
        with self._database.lock, self._database.explained():
            return self._read(row_id)

    def forget(self, row_id: str) -> None:
        """Delete a row, also an unreadable one. Its processes have to have ended before."""

        def once() -> None:
            with self._database.transaction(durable=True):
                self._database.connection.execute(f"DELETE FROM {self._table} WHERE id = ?", (row_id,))

        with self._database.lock, self._database.explained():
            self._database.with_reserve(once)

    def change(
        self,
        row_id: str,
        function: Callable[[RowT], RowT],
        *,
        durable: bool = False,
        **columns: str | None,
    ) -> RowT:
        """Replace a record by `function` of itself, atomically, and return the new record.

        `function` runs inside the write transaction: it does no I/O, and an exception from it leaves the
        record unchanged. `columns` are other columns of the table. Raises `NameTakenError` too. A `durable`
        change is on the disk when this returns; others survive a crash of ramet, but perhaps not a crash of
        the machine.
        """

        def once() -> RowT:
            with self._database.transaction(durable=durable):
                return self._write(row_id, function, columns)

        with self._database.lock, self._database.explained():
            return self._database.with_reserve(once)

    def change_all(
        self, functions: Mapping[str, Callable[[RowT], RowT]], **columns: Mapping[str, str | None]
    ) -> dict[str, RowT | RametError]:
        """Change several records as `change` does, in one transaction. Returns records and errors by id.

        The result has an error where a record is gone or its function refuses. `columns` are other columns,
        each with its values by id.
        """

        def once() -> dict[str, RowT | RametError]:
            outcomes: dict[str, RowT | RametError] = {}
            with self._database.transaction():
                for row_id, function in functions.items():
                    try:
                        of_row = {name: values[row_id] for name, values in columns.items()}
                        outcomes[row_id] = self._write(row_id, function, of_row)
                    except RametError as error:
                        outcomes[row_id] = error
            return outcomes

        with self._database.lock, self._database.explained():
            return self._database.with_reserve(once)

    def _write(
        self, row_id: str, function: Callable[[RowT], RowT], columns: Mapping[str, str | None]
    ) -> RowT:
        record = function(self._read(row_id))
        values = {"body": self._encode(record), **columns}
        with self._names_taken(record):
            self._database.connection.execute(
                f"UPDATE {self._table} SET {', '.join(f'{name} = ?' for name in values)} WHERE id = ?",
                (*values.values(), row_id),
            )
        return record

    def remove_all(
        self, row_ids: Iterable[str], *, only_if: Callable[[RowT], bool] | None = None
    ) -> list[RowT]:
        """Delete several records in one transaction. Returns the last state of those that existed.

        A record that can't be read is deleted too. Records for which `only_if` is false stay; `only_if` runs
        inside the write transaction.
        """
        ids = list(row_ids)

        def once() -> list[str]:
            bodies: list[str] = []
            with self._database.transaction():
                for row_id in ids:
                    if only_if is not None and not self._allows(only_if, row_id):
                        continue
                    row = self._database.connection.execute(
                        f"DELETE FROM {self._table} WHERE id = ? RETURNING body", (row_id,)
                    ).fetchone()
                    if row is not None:
                        bodies.append(row[0])
            return bodies

        with self._database.lock, self._database.explained():
            bodies = self._database.with_reserve(once)
        removed = []
        for body in bodies:
            with suppress(*_UNFIT):  # its caller knows the last readable state
                removed.append(msgspec.json.decode(body, type=self._kind))
        return removed

    def _allows(self, only_if: Callable[[RowT], bool], row_id: str) -> bool:
        try:
            return only_if(self._read(row_id))
        except (NotFoundError, UnreadableError):
            return False  # gone already; or that is unknown, and then it stays

    def remove(self, row_id: str, *, only_if: Callable[[RowT], bool] | None = None) -> RowT | None:
        """Forget a record and return it as it then was; None when it is unknown or `only_if` says no.

        Raises `UnreadableError`; the row stays then. `only_if` runs inside the write transaction, like the
        function of `change`.
        """

        def once() -> RowT | None:
            with self._database.transaction():
                row = self._database.connection.execute(
                    f"SELECT body FROM {self._table} WHERE id = ?", (row_id,)
                ).fetchone()
                if row is None:
                    return None
                record = self._decode(row_id, row[0])
                if only_if is not None and not only_if(record):
                    return None
                self._database.connection.execute(f"DELETE FROM {self._table} WHERE id = ?", (row_id,))
                return record

        with self._database.lock, self._database.explained():
            return self._database.with_reserve(once)

    @contextmanager
    def _names_taken(self, record: RowT) -> Iterator[None]:
        try:
            yield
        except sqlite3.IntegrityError as error:
            raise NameTakenError(
                f"there is {_article(self._what)} {self._what} named {record.name} already",
                hint="choose another name",
            ) from error

    def _read(self, row_id: str) -> RowT:
        row = self._database.connection.execute(
            f"SELECT body FROM {self._table} WHERE id = ?", (row_id,)
        ).fetchone()
        if row is None:
            listing = "ps -a" if self._what == "instance" else f"{self._what} ls"
            raise NotFoundError(
                f"{self._what} {row_id} is gone", hint=f"`ramet {listing}` lists all {self._what}s"
            )
        return self._decode(row_id, row[0])

    def _decoded(self, row_id: str, body: str) -> RowT:
        record = msgspec.json.decode(body, type=self._kind)
        if record.id != row_id:  # its id is the name of its directory, which may be removed
            raise ValueError(f"it has the id {record.id!r}")
        return record

    def _decode(self, row_id: str, body: str) -> RowT:
        try:
            return self._decoded(row_id, body)
        except _UNFIT as error:
            raise self.cannot_read(_what_is_left(row_id, body, error)) from error

    def cannot_read(self, row: Unreadable) -> UnreadableError:
        """Make the error for a row that can't be read."""
        return UnreadableError(
            f"the record of {self._what} {row.name} can't be read: {row.problem}",
            hint="the record, its files and its processes are left alone; nothing else is affected",
        )

    def _encode(self, record: RowT) -> str:
        """Encode a record as JSON, and decode it again: every record that is written can be read.

        Raises `StoreError`.
        """
        try:
            body = encode_json(record)
            msgspec.json.decode(body, type=self._kind)
        except _UNFIT as error:
            raise StoreError(
                f"the record of {self._what} {record.name!r} can't be kept, since it can't be read: {error}",
                hint="nothing has been written",
            ) from error
        return body.decode()


class Store(Table[Record]):
    """The records of instances and, in `snapshots`, of snapshots."""

    def __init__(self, path: Path) -> None:
        database = Database(path)
        super().__init__(database, "instance", Record, what="instance")
        self.snapshots = Table(database, "snapshot", SnapshotRecord, what="snapshot")

    def finish_forks(
        self, functions: Mapping[str, Callable[[Record], Record]], receipts: Mapping[str, Receipt]
    ) -> dict[str, Record | RametError]:
        """Change the records of verified forks, as `change_all`, and store each fork's receipt."""
        encoded: dict[str, str | None] = {}
        refused: dict[str, Record | RametError] = {}
        for row_id, receipt in receipts.items():
            try:
                # The directory is derived when the receipt is read (I6): a home may be moved, and its path
                # may have bytes that JSON hasn't.
                body = encode_json(msgspec.structs.replace(receipt, directory=""))
                msgspec.json.decode(body, type=Receipt)
                encoded[row_id] = body.decode()
            except _UNFIT as error:
                refused[row_id] = StoreError(
                    f"the receipt of {receipt.name} can't be kept, since it can't be read: {error}"
                )
        kept = {row_id: function for row_id, function in functions.items() if row_id not in refused}
        return {**self.change_all(kept, receipt=encoded), **refused}

    def receipt(self, row_id: str) -> Receipt | None:
        """Return a fork's receipt, without its directory.

        None for an instance that isn't a fork, or no longer one. Raises `UnreadableError` when the receipt
        can't be read; the fork itself isn't affected.
        """
        with self._database.lock, self._database.explained():
            row = self._database.connection.execute(
                "SELECT receipt FROM instance WHERE id = ?", (row_id,)
            ).fetchone()
        if row is None or row[0] is None:
            return None
        try:
            return msgspec.json.decode(row[0], type=Receipt)
        except _UNFIT as error:
            raise UnreadableError(
                f"the receipt of instance {row_id} can't be read: {error}",
                hint="the instance itself isn't affected",
            ) from error

    def require_open(self) -> None:
        """Raise `UsageError` once it has been closed."""
        self._database.require_open()

    def close(self) -> None:
        """Close the connection. Nothing may be asked afterwards."""
        self._database.close()


def _what_is_left(row_id: str, body: str, error: Exception) -> Unreadable:
    """Read the readable rest of a broken row."""
    name, vmm = row_id, None
    with suppress(*_UNFIT):
        decoded: Any = msgspec.json.decode(body)
        if isinstance(decoded, dict):
            with suppress(*_UNFIT, KeyError):
                vmm = msgspec.convert(decoded["vmm"]["process"], ProcessRef)
            with suppress(UsageError, *_UNFIT, KeyError):  # then its id stands for it
                name = check_name(decoded["name"])
    return Unreadable(row_id, name, str(error), vmm)


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
