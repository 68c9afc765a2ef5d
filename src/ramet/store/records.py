"""The records of a home: instances and snapshots, for several processes at once, without a daemon."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import msgspec

from ramet.errors import NameTakenError, NotFoundError, RametError
from ramet.model.record import Record
from ramet.model.shapes import Receipt
from ramet.model.snapshot import SnapshotRecord
from ramet.store.database import Database
from ramet.text import encode_json


class _Row(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str | None: ...


RowT = TypeVar("RowT", bound=_Row)


class Table(Generic[RowT]):
    """The records of one kind, each a JSON document. `what` is the kind's word in messages, `verb` what
    removes one. Errors as `Database`.
    """

    def __init__(self, database: Database, table: str, kind: type[RowT], *, what: str, verb: str) -> None:
        self._database = database
        self._table = table
        self._kind = kind
        self._what = what
        self._verb = verb

    def add(self, records: Sequence[RowT]) -> None:
        """Add all of `records` or none. Raises `NameTakenError` when one of their names is in use."""
        with self._database.lock, self._database.explained(), self._database.transaction():
            for record in records:
                with self._names_taken(record):
                    self._database.connection.execute(
                        f"INSERT INTO {self._table} (id, body) VALUES (?, ?)", (record.id, _encode(record))
                    )

    def all(self) -> list[RowT]:
        """Every record, oldest first."""
        with self._database.lock, self._database.explained():
            rows = self._database.connection.execute(
                f"SELECT body FROM {self._table} ORDER BY rowid"
            ).fetchall()
            return [self._decode(body) for (body,) in rows]

    def get(self, row_id: str) -> RowT:
        """One record. Raises `NotFoundError`."""
        with self._database.lock, self._database.explained():
            return self._read(row_id)

    def change(
        self,
        row_id: str,
        function: Callable[[RowT], RowT],
        *,
        durable: bool = False,
        **columns: str | None,
    ) -> RowT:
        """Replace a record by `function` of itself, atomically, and return the new one.

        `function` runs inside the write transaction: it does no I/O, and whatever it raises leaves the record
        as it was. `columns` are other columns of the table. Raises `NameTakenError` too. A `durable` change
        is on the disk when this returns; others survive a crash of ramet, but perhaps not one of the machine.
        """

        def once() -> RowT:
            with self._database.transaction(durable=durable):
                return self._write(row_id, function, columns)

        with self._database.lock, self._database.explained():
            return self._database.with_reserve(once)

    def change_all(
        self, functions: Mapping[str, Callable[[RowT], RowT]], **columns: Mapping[str, str | None]
    ) -> dict[str, RowT | RametError]:
        """As `change`, of several records in one transaction: the new ones, and where one is gone or
        `function` refuses the error, by id. `columns` are other columns, each with its values by id.
        """

        def once() -> dict[str, RowT | RametError]:
            found: dict[str, RowT | RametError] = {}
            with self._database.transaction():
                for row_id, function in functions.items():
                    try:
                        of_row = {name: values[row_id] for name, values in columns.items()}
                        found[row_id] = self._write(row_id, function, of_row)
                    except RametError as error:
                        found[row_id] = error
            return found

        with self._database.lock, self._database.explained():
            return self._database.with_reserve(once)

    def _write(
        self, row_id: str, function: Callable[[RowT], RowT], columns: Mapping[str, str | None]
    ) -> RowT:
        record = function(self._read(row_id))
        values = {"body": _encode(record), **columns}
        with self._names_taken(record):
            self._database.connection.execute(
                f"UPDATE {self._table} SET {', '.join(f'{name} = ?' for name in values)} WHERE id = ?",
                (*values.values(), row_id),
            )
        return record

    def remove_all(self, row_ids: Iterable[str]) -> list[RowT]:
        """Forget several records in one transaction: those that were known, as they then were. One that can't
        be read goes, too.
        """
        ids = list(row_ids)

        def once() -> list[str]:
            bodies = []
            with self._database.transaction():
                for row_id in ids:
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
            with suppress(msgspec.MsgspecError):
                removed.append(self._decode(body))
        return removed

    def remove(self, row_id: str, *, only_if: Callable[[RowT], bool] | None = None) -> RowT | None:
        """Forget a record and return it as it then was; None when it is unknown or `only_if` says no.

        `only_if` runs inside the write transaction, like the function of `change`.
        """

        def once() -> RowT | None:
            with self._database.transaction():
                row = self._database.connection.execute(
                    f"SELECT body FROM {self._table} WHERE id = ?", (row_id,)
                ).fetchone()
                if row is None or (only_if is not None and not only_if(self._decode(row[0]))):
                    return None
                self._database.connection.execute(f"DELETE FROM {self._table} WHERE id = ?", (row_id,))
                return self._decode(row[0])

        with self._database.lock, self._database.explained():
            return self._database.with_reserve(once)

    @contextmanager
    def _names_taken(self, record: RowT) -> Iterator[None]:
        try:
            yield
        except sqlite3.IntegrityError as error:
            raise NameTakenError(
                f"there is {_article(self._what)} {self._what} named {record.name} already",
                hint=f"choose another name, or `ramet {self._verb} {record.name}` first",
            ) from error

    def _read(self, row_id: str) -> RowT:
        row = self._database.connection.execute(
            f"SELECT body FROM {self._table} WHERE id = ?", (row_id,)
        ).fetchone()
        if row is None:
            listing = "ps -a" if self._what == "instance" else f"{self._what} ls"
            raise NotFoundError(
                f"{self._what} {row_id} is gone", hint=f"`ramet {listing}` lists what there is"
            )
        return self._decode(row[0])

    def _decode(self, body: str) -> RowT:
        return msgspec.json.decode(body, type=self._kind)


class Store(Table[Record]):
    """The records of instances and, in `snapshots`, those of snapshots."""

    def __init__(self, path: Path) -> None:
        database = Database(path)
        super().__init__(database, "instance", Record, what="instance", verb="rm")
        self.snapshots = Table(database, "snapshot", SnapshotRecord, what="snapshot", verb="snapshot rm")

    def settle(
        self, functions: Mapping[str, Callable[[Record], Record]], receipts: Mapping[str, Receipt]
    ) -> dict[str, Record | RametError]:
        """As `change_all`, of forks that have proved themselves, each with its receipt."""
        return self.change_all(
            functions, receipt={row_id: encode_json(one).decode() for row_id, one in receipts.items()}
        )

    def receipt(self, row_id: str) -> Receipt | None:
        """What a fork proved about itself; None when it is no fork, or none any more.

        Its `directory` is where it was then: a home may be moved, and its path needn't be text.
        """
        with self._database.lock, self._database.explained():
            row = self._database.connection.execute(
                "SELECT receipt FROM instance WHERE id = ?", (row_id,)
            ).fetchone()
            return None if row is None or row[0] is None else msgspec.json.decode(row[0], type=Receipt)

    def close(self) -> None:
        """Close the connection. Nothing may be asked afterwards."""
        self._database.close()


def _encode(record: _Row) -> str:
    return encode_json(record).decode()


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
