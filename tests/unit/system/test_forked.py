"""A child forked without execve(2), as servers and multiprocessing do, keeps nothing of its parent."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ramet.store.database import Database
from ramet.system import process_ref
from ramet.system.locks import file_lock_sync

LIMIT_S = 60


def in_child(function: Callable[[], object]) -> str:
    """What `function` gave in a child that was forked for it."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, repr(function()).encode())
        except BaseException as error:
            os.write(writing, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(writing)
    try:
        with os.fdopen(reading) as told:
            return told.read()
    finally:
        os.waitpid(child, 0)


def test_a_child_is_another_process() -> None:
    ours = process_ref.this_process()
    theirs = in_child(
        lambda: (process_ref.this_process().pid == os.getpid(), process_ref.this_process() == ours)
    )
    assert theirs == "(True, False)"
    assert process_ref.this_process() == ours


def run(script: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *words],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


# The child outlives its parent, which was killed in the middle of it, and says when that is so.
_FORK_AND_DIE = """
if os.fork() == 0:
    while os.getppid() == parent:
        time.sleep(0.01)
    print("orphaned", os.getpid(), flush=True)
    os.close(1), os.close(2)
    time.sleep(600)
os.kill(parent, signal.SIGKILL)
"""


def test_a_lock_goes_with_its_holder_though_a_child_of_that_lives(tmp_path: Path) -> None:
    script = f"""
import os, signal, sys, time
from pathlib import Path
from ramet.system.locks import file_lock_sync
parent = os.getpid()
with file_lock_sync(Path(sys.argv[1]), wait_s=0):
    {_FORK_AND_DIE.strip().replace(chr(10), chr(10) + "    ")}
"""
    done = run(script, tmp_path / "lock")
    assert "orphaned" in done.stdout, done.stderr
    child = int(done.stdout.split()[1])
    try:
        with file_lock_sync(tmp_path / "lock", wait_s=0):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_child_leaves_a_lock_that_its_parent_has_alone(tmp_path: Path) -> None:
    with file_lock_sync(tmp_path / "lock", wait_s=0):

        def leaves_it() -> str:
            return "left"

        manager = file_lock_sync(tmp_path / "other", wait_s=0)
        manager.__enter__()
        assert in_child(lambda: manager.__exit__(None, None, None) or leaves_it()) == "'left'"
        with pytest.raises(Exception, match="is locked"), file_lock_sync(tmp_path / "other", wait_s=0):
            pass
        manager.__exit__(None, None, None)


def test_a_guest_is_resumed_though_a_child_of_the_dead_one_lives(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "control"))
    listener.listen()
    listener.settimeout(LIMIT_S)
    script = f"""
import os, signal, sys, time, anyio
from pathlib import Path
from ramet.system.pause_watchdog import ResumeSteps, resume_on_death
parent = os.getpid()
async def main():
    async with resume_on_death(Path(sys.argv[1]), ResumeSteps("control", (("go on", "yes"),))):
        {_FORK_AND_DIE.strip().replace(chr(10), chr(10) + "        ")}
anyio.run(main)
"""
    done = run(script, tmp_path)
    assert "orphaned" in done.stdout, done.stderr
    try:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(LIMIT_S)
            assert connection.recv(100) == b"go on"
            connection.sendall(b"yes")
    finally:
        os.kill(int(done.stdout.split()[1]), signal.SIGKILL)
        listener.close()


def test_a_connection_ends_with_its_process_though_a_child_of_that_lives(tmp_path: Path) -> None:
    """A guest's port, and QMP, serve one client at a time."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "control"))
    listener.listen()
    script = f"""
import os, signal, sys, time
from pathlib import Path
from ramet.system import sockets
parent = os.getpid()
connection = sockets.connect(Path(sys.argv[1]), "control")
{_FORK_AND_DIE}
"""
    done = run(script, tmp_path)
    assert "orphaned" in done.stdout, done.stderr
    try:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(LIMIT_S)
            assert connection.recv(1) == b""
    finally:
        os.kill(int(done.stdout.split()[1]), signal.SIGKILL)
        listener.close()


@pytest.mark.timing
def test_a_child_and_its_parent_have_databases_of_their_own(tmp_path: Path) -> None:
    """SQLite believes in the child that it holds its parent's locks. The parent, leaving, would then remove
    the write-ahead log in which the child goes on writing.
    """
    path = tmp_path / "ramet.db"
    ours = Database(path)
    ours.connection.execute("CREATE TABLE told (text TEXT)")
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            theirs = Database(path)
            theirs.connection.execute("INSERT INTO told VALUES ('before')")
            os.write(ready[1], b".")
            os.read(go[0], 1)
            theirs.connection.execute("INSERT INTO told VALUES ('after')")
            os.write(ready[1], b".")
            time.sleep(600)
            code = 0
        finally:
            os._exit(code)
    try:
        assert os.read(ready[0], 1) == b"."
        ours.close()
        Database(path).close()
        os.write(go[1], b".")
        assert os.read(ready[0], 1) == b"."
        again = Database(path)
        told = [text for (text,) in again.connection.execute("SELECT text FROM told")]
        again.close()
        assert told == ["before", "after"]
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for descriptor in (*ready, *go):
            os.close(descriptor)
