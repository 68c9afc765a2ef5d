"""Databases across fork(2), of a process with threads."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from ramet.store import inherited
from ramet.store.database import Database


def test_a_thread_that_forks_lets_go_of_its_own_locks_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads fork at once, and one has given up waiting: the other's child needs the lock still."""
    monkeypatch.setattr(inherited, "_WAIT_S", 0.01)
    database = Database(tmp_path / "ramet.db")
    try:
        inherited._before()

        def fork() -> None:
            inherited._before()
            inherited._release()

        other = threading.Thread(target=fork)
        other.start()
        other.join()
        assert database.lock.locked()
        inherited._release()
        assert not database.lock.locked()
    finally:
        database.close()
