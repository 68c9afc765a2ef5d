"""SQLite in a guest, under write load: what shows whether a disk and the memory before it fit together.

The program is the host's own `sqlite3` with its libraries, as the dynamic linker names them: the built-in
image has none. Its writer commits one transaction after another, each synced: twenty rows, whose content
comes of their numbers, and the number of the transaction. Cut at any instant, rows and number agree or
something is lost.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import tarfile
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import pytest

from ramet.model import protocols

DATABASE = "/data/load.db"
ROWS_A_TRANSACTION = 20
_GROUP = "/run/load.group"
_ERRORS = "/run/load.errors"
# Before any statement: a reader that closes as the last one locks the database for its checkpoint, and even
# a PRAGMA that comes right then fails at once (14 of 300 times when tried on a host).
_PATIENTLY = "-cmd '.timeout 20000'"
_BODY = "printf('%0200d', {transaction} * 1000 + {row})"


class Load(NamedTuple):
    """What a database was found to have: committed transactions, and rows."""

    transactions: int
    rows: int


@cache
def sqlite_tree() -> bytes:
    """A tar archive with `sqlite3` and what it needs to run, at their places on this host.

    Skips the test where there is no sqlite3.
    """
    program = shutil.which("sqlite3")
    if program is None:
        pytest.skip("there is no sqlite3 here (package sqlite3)")
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True, timeout=30).stdout
    libraries = sorted(set(re.findall(r"(/\S+) \(0x", listed)))
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.add(Path(program).resolve(), "usr/bin/sqlite3")
        for library in libraries:
            archive.add(Path(library).resolve(), library.lstrip("/"))
    return out.getvalue()


async def install_sqlite(vm: protocols.VM) -> None:
    """Put sqlite3 into a running guest of the built-in image."""
    put = await vm.exec("tar", "-x", "-C", "/", stdin=sqlite_tree(), timeout=120)
    assert put.ok, put.stderr
    assert (await vm.exec("sqlite3", "--version", check=True)).text.startswith("3.")


async def start_load(
    vm: protocols.VM, *, journal: Literal["wal", "delete"] = "wal", database: str = DATABASE
) -> None:
    """Begin to write: transactions without end, in the background, until `stop_load`.

    The database is made if need be; an old one is gone on with.
    """
    await query(
        vm,
        f"PRAGMA journal_mode={journal}; CREATE TABLE IF NOT EXISTS counter(n INTEGER NOT NULL);"
        "INSERT INTO counter SELECT 0 WHERE NOT EXISTS (SELECT * FROM counter);"
        "CREATE TABLE IF NOT EXISTS rows(t INTEGER, r INTEGER, body TEXT, PRIMARY KEY (t, r));"
        "CREATE INDEX IF NOT EXISTS bodies ON rows(body);",
        database=database,
    )
    began = await transactions(vm, database=database)
    body = _BODY.format(transaction="$i", row="value")
    statement = (
        f"BEGIN IMMEDIATE; INSERT INTO rows SELECT $i, value, {body}"
        f" FROM generate_series(1, {ROWS_A_TRANSACTION}); UPDATE counter SET n = $i; COMMIT;"
    )
    # EXTRA, so that a rollback journal's removal, which is the commit, lasts too (sqlite.org/pragma.html).
    settings = "PRAGMA synchronous=EXTRA;"
    script = (
        f"echo $$ > {_GROUP}; "
        f'( echo "{settings}"; i={began}; while :; do i=$((i + 1)); echo "{statement}"; done )'
        f" | sqlite3 -bail {_PATIENTLY} {database} > /dev/null 2> {_ERRORS}"
    )
    await vm.spawn("sh", "-c", script)
    await wait_for_transactions(vm, began + 3, database=database)


async def stop_load(vm: protocols.VM) -> None:
    """End the writer at once, in the middle of whatever it does. Fails the test when it had given up."""
    gone = await vm.exec(
        *("sh", "-c", f"kill -9 -$(cat {_GROUP}) && while pidof sqlite3; do sleep 0.1; done; cat {_ERRORS}"),
        timeout=30,
    )
    assert gone.ok, f"the writer ended by itself: {gone.stderr!r}"
    assert not re.search(r"error", gone.text, re.IGNORECASE), gone.text


async def query(vm: protocols.VM, sql: str, *, database: str = DATABASE) -> list[str]:
    """The lines that some SQL prints. An error in it fails the test."""
    done = await vm.exec(*("sqlite3", "-bail", "-cmd", ".timeout 20000", database, sql), timeout=120)
    assert done.ok, done.stderr
    return done.text.split("\n")[:-1]


async def transactions(vm: protocols.VM, *, database: str = DATABASE) -> int:
    """How many transactions have been committed: it only grows."""
    return int((await query(vm, "SELECT n FROM counter", database=database))[-1])


async def wait_for_transactions(vm: protocols.VM, number: int, *, database: str = DATABASE) -> None:
    """Until that many are committed; the guest waits. Fails the test when they don't come."""
    script = (
        f'while [ "$(sqlite3 {_PATIENTLY} {database} "SELECT n FROM counter")" -lt {number} ]; do'
        f" [ ! -s {_ERRORS} ] || {{ cat {_ERRORS} >&2; exit 1; }}; sleep 0.05; done"
    )
    done = await vm.exec("sh", "-c", script, timeout=60)
    assert done.ok, f"{vm.name}: the writer doesn't go on: {done.stderr!r}"


async def check_database(vm: protocols.VM, *, database: str = DATABASE) -> Load:
    """What the database has. Fails the test unless it is whole and every transaction in it is whole."""
    body = _BODY.format(transaction="t", row="r")
    lines = await query(
        vm,
        "PRAGMA integrity_check; SELECT n FROM counter; SELECT count(*) FROM rows;"
        f"SELECT count(*) FROM rows WHERE body != {body};"
        "SELECT coalesce(max(t), 0), count(DISTINCT t) FROM rows;",
        database=database,
    )
    assert lines[0] == "ok", lines
    number, rows, wrong = (int(line) for line in lines[1:4])
    assert rows == number * ROWS_A_TRANSACTION, (number, rows)
    assert wrong == 0
    assert lines[4] == f"{number}|{number}"
    return Load(number, rows)
