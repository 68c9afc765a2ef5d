"""A home's database on filesystems that are full, of small blocks, without inodes or read-only: errors, and
no SIGBUS. The filesystems are real.
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ramet.errors import StoreError
from ramet.store.database import Database
from ramet.system.files import free_bytes
from ramet.units import KIB, MIB
from tests.support.loop_filesystems import SYSTEM_PATH, mounted

_LIMIT_S = 60


@contextmanager
def filesystem(kind: str, mebibytes: int, *options: str) -> Iterator[Path]:
    mkfs = shutil.which(f"mkfs.{kind}", path=SYSTEM_PATH)
    if mkfs is None:
        pytest.skip(f"mkfs.{kind} isn't installed")
    with tempfile.NamedTemporaryFile(prefix=f"ramet-{kind}-") as image:
        image.truncate(mebibytes * MIB)
        subprocess.run([mkfs, *options, image.name], check=True, capture_output=True, timeout=_LIMIT_S)
        with mounted("-t", kind, "-o", "loop", image.name) as place:
            yield place


@pytest.fixture(scope="module")
def small_blocks() -> Iterator[Path]:
    """ext4 with blocks of 1 KiB."""
    with filesystem("ext4", 32, "-q", "-m", "0", "-b", "1024") as place:
        yield place


@contextmanager
def left(place: Path, room_bytes: int) -> Iterator[None]:
    """Only so much is free inside."""
    ballast = place / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for piece_bytes in (MIB, 64 * KIB, 4 * KIB, KIB):
            while (free_bytes(place) or 0) - piece_bytes >= room_bytes:
                try:
                    file.write(b"x" * piece_bytes)
                    os.fsync(file.fileno())
                except OSError:
                    break
    try:
        yield
    finally:
        ballast.unlink()


_USE = """
import sys, time
from pathlib import Path
from ramet.errors import StoreError
from ramet.store.database import Database
try:
    database = Database(Path(sys.argv[1]))
    with database.explained():
        database.with_reserve(lambda: database.connection.execute("DELETE FROM instance"))
    print("deleted", flush=True)
    sys.stdin.read()
    database.close()
except StoreError as error:
    print(error.message, "|", error.hint)
"""


def processes(place: Path, count: int) -> list[subprocess.Popen[str]]:
    """So many that open the database at once, delete, and close it when their input ends."""
    return [
        subprocess.Popen(
            [sys.executable, "-c", _USE, str(place / "ramet.db")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize(
    "room_bytes",
    [0, *(pytest.param(kib * KIB, marks=pytest.mark.slow) for kib in (5, 10, 33, 70))],
)
@pytest.mark.parametrize("has_reserve", [True, False])
def test_opened_by_several_on_a_full_disk(small_blocks: Path, room_bytes: int, has_reserve: bool) -> None:
    """Each works or says that the disk is full; with the reserve that a home keeps, they all work."""
    home = small_blocks / f"home-{room_bytes}-{has_reserve}"
    home.mkdir()
    Database(home / "ramet.db").close()
    if not has_reserve:
        for reserve in home.glob("ramet.db-reserve*"):
            reserve.unlink()
    with left(small_blocks, room_bytes):
        running = processes(home, 4)
        for child in running:
            out, _ = child.communicate("", timeout=_LIMIT_S)
            assert child.returncode == 0, signal.Signals(-child.returncode).name
            if has_reserve:
                assert out == "deleted\n"
            else:
                assert out == "deleted\n" or ("free some" in out or "disk is full" in out), out
    Database(home / "ramet.db").close()
    assert sum(path.stat().st_blocks for path in home.glob("ramet.db-reserve*")) * 512 >= 256 * KIB


def test_the_index_has_all_its_blocks_while_the_database_is_open(small_blocks: Path) -> None:
    home = small_blocks / "blocks"
    home.mkdir()
    for _ in range(2):
        database, other = Database(home / "ramet.db"), Database(home / "ramet.db")
        index = (home / "ramet.db-shm").stat()
        assert index.st_blocks * 512 >= index.st_size >= 32 * KIB
        assert (home / "ramet.db-shm").stat().st_mode & 0o777 == (home / "ramet.db").stat().st_mode & 0o777
        other.close()
        with database.transaction():
            database.connection.execute("DELETE FROM instance")
        database.close()
        assert not (home / "ramet.db-shm").exists()


def test_an_index_that_grows_on_a_disk_that_fills_up(small_blocks: Path) -> None:
    """A reader that stays keeps the log from being used anew, so it and its index become longer until the
    disk is full.
    """
    home = small_blocks / "growing"
    home.mkdir()
    script = """
import sqlite3, sys
from pathlib import Path
from ramet.errors import StoreError
from ramet.store.database import Database
path = Path(sys.argv[1])
database = Database(path)
database.connection.execute("CREATE TABLE filler (body BLOB)")
reader = sqlite3.connect(path, isolation_level=None)
reader.execute("BEGIN")
reader.execute("SELECT count(*) FROM filler").fetchone()
largest = 0
try:
    while True:
        with database.explained(), database.transaction():
            database.connection.executemany("INSERT INTO filler VALUES (?)", [(bytes(900),)] * 400)
        index = path.with_name("ramet.db-shm").stat()
        assert index.st_blocks * 512 >= index.st_size, index
        largest = max(largest, index.st_size)
except StoreError as error:
    print("error", largest, error.message)
"""
    with left(small_blocks, 24 * MIB):
        done = subprocess.run(
            [sys.executable, "-c", script, str(home / "ramet.db")],
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
            check=False,
        )
    assert done.returncode == 0, (done.returncode, done.stderr)
    word, largest, message = done.stdout.split(" ", 2)
    assert word == "error"
    assert int(largest) > 64 * KIB, "it has grown"
    assert "full" in message or "No space" in message
    for left_over in home.iterdir():
        left_over.unlink()


def test_closing_one_of_several_keeps_the_others_locks(small_blocks: Path) -> None:
    """POSIX drops a process's locks on a file when any of its descriptors is closed: who opens it next would
    empty the index under the others.
    """
    home = small_blocks / "locks"
    home.mkdir()
    database, other = Database(home / "ramet.db"), Database(home / "ramet.db")
    other.close()
    inode = (home / "ramet.db-shm").stat().st_ino
    held = [line for line in Path("/proc/locks").read_text().splitlines() if f":{inode} 128 128" in line]
    assert [line.split()[1:4] for line in held] == [["POSIX", "ADVISORY", "READ"]]
    (child,) = processes(home, 1)
    assert child.stdout is not None
    assert child.stdout.readline() == "deleted\n"
    with database.transaction():
        database.connection.execute("CREATE TABLE filler (body BLOB)")
    child.communicate("", timeout=_LIMIT_S)
    assert (home / "ramet.db-shm").stat().st_ino == inode, "the child wasn't the last one"
    database.close()


def test_an_index_left_by_processes_that_were_killed_is_made_anew(small_blocks: Path) -> None:
    home = small_blocks / "killed"
    home.mkdir()
    (child,) = processes(home, 1)
    assert child.stdout is not None
    child.stdout.readline()
    child.kill()
    child.communicate(timeout=_LIMIT_S)
    index = home / "ramet.db-shm"
    assert index.exists()
    # As after a power cut: the log is gone, the index speaks of it.
    index.write_bytes(b"\xff" * index.stat().st_size)
    database = Database(home / "ramet.db")
    assert database.connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()
    assert not index.exists()


def test_a_disk_without_inodes() -> None:
    """The database needs two files besides its own; a home keeps two in reserve."""
    with filesystem("ext4", 16, "-q", "-m", "0", "-N", "64") as place:
        Database(place / "ramet.db").close()
        made = 0
        with pytest.raises(OSError, match="No space"):
            for made in range(1000):
                (place / f"file-{made}").touch()
        database = Database(place / "ramet.db")
        with database.transaction():
            database.connection.execute("DELETE FROM instance")
        database.close()
        assert made > 10


def test_btrfs_that_is_full() -> None:
    """It writes elsewhere what is overwritten, unless it is told not to."""
    with filesystem("btrfs", 128, "-q") as place:
        Database(place / "ramet.db").close()
        with left(place, 0):
            for child in processes(place, 2):
                out, _ = child.communicate("", timeout=_LIMIT_S)
                assert child.returncode == 0, child.returncode
                assert out == "deleted\n" or "free some" in out or "full" in out, out


def test_a_filesystem_that_has_become_read_only(small_blocks: Path) -> None:
    home = small_blocks / "read-only"
    home.mkdir()
    Database(home / "ramet.db").close()
    subprocess.run(["mount", "-o", "remount,ro", small_blocks], check=True, timeout=_LIMIT_S)
    try:
        (child,) = processes(home, 1)
        out, _ = child.communicate("", timeout=_LIMIT_S)
        assert child.returncode == 0
        assert "read" in out
        assert "only" in out
    finally:
        subprocess.run(["mount", "-o", "remount,rw", small_blocks], check=True, timeout=_LIMIT_S)
    Database(home / "ramet.db").close()


def test_a_limit_on_file_sizes_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ramet.db"
    Database(path).close()
    done = subprocess.run(
        ["prlimit", "--fsize=4096", sys.executable, "-c", _USE, str(path)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "ulimit -f" in done.stdout
    Database(path).close()


def test_a_child_of_fork_has_its_own(tmp_path: Path) -> None:
    """What the child closes is no lock of its parent's."""
    database = Database(tmp_path / "ramet.db")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            Database(tmp_path / "ramet.db").close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with database.transaction():
        database.connection.execute("DELETE FROM instance")
    database.close()
    with pytest.raises(sqlite3.ProgrammingError):
        database.connection.execute("SELECT 1")


def test_an_error_while_it_is_opened_leaves_nothing_open(tmp_path: Path) -> None:
    before = set(Path("/proc/self/fd").iterdir())
    (tmp_path / "ramet.db").write_bytes(b"no database" * 1000)
    with pytest.raises(StoreError):
        Database(tmp_path / "ramet.db")
    assert len(set(Path("/proc/self/fd").iterdir()) - before) <= 1  # the listing itself
