"""A prepared database, and a fork of it for each test."""

import io
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import ramet.sync

SCHEMA = """
CREATE TABLE orders(id INTEGER PRIMARY KEY, state TEXT NOT NULL, cents INTEGER NOT NULL);
INSERT INTO orders SELECT value, 'open', value * 100 FROM generate_series(1, 1000);
"""


class Database:
    """SQLite in a guest."""

    def __init__(self, vm: ramet.sync.VM) -> None:
        self.vm = vm

    def query(self, sql: str) -> str:
        return self.vm.exec("sqlite3", "-bail", "/srv/orders.db", sql, check=True).text.strip()


@pytest.fixture(scope="session")
def prepared() -> Iterator[ramet.sync.VM]:
    """Boot, install and fill once. This is the slow part, and no test pays for it again."""
    with ramet.sync.Host() as host:
        vm = host.run("builtin", name="database")
        vm.exec("tar", "-x", "-C", "/", stdin=sqlite_of_this_machine(), check=True)
        Database(vm).query(SCHEMA)
        yield vm.template()


@pytest.fixture
def database(prepared: ramet.sync.VM) -> Iterator[Database]:
    """The prepared database, in a guest of the test's own. It is removed with everything in it."""
    with prepared.fork(1) as (vm,):
        yield Database(vm)


def sqlite_of_this_machine() -> bytes:
    """A tar archive of `sqlite3` and its libraries: the built-in image has only busybox."""
    program = shutil.which("sqlite3")
    if program is None:
        pytest.skip("there is no sqlite3 on this machine: install the package sqlite3")
    linked = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(Path(program).resolve(), "usr/bin/sqlite3")
        for library in set(re.findall(r"(/\S+) \(0x", linked)):
            archive.add(Path(library).resolve(), library.lstrip("/"))
    return buffer.getvalue()
