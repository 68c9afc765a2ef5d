"""Open databases across fork(2).

SQLite notes per process, by inode, which locks it holds. A child inherits the notes but not the locks
(fcntl(2)), so a database that the child opened would be used without any: the parent, or another process,
could remove the write-ahead log under it (sqlite.org/howtocorrupt.html, 2.6). So no thread is inside SQLite
at the moment of a fork, and the child closes inherited databases before it opens any.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import weakref
from typing import Protocol

_WAIT_S = 20.0


class Closable(Protocol):
    """An open database, used under `lock`."""

    lock: threading.Lock
    connection: sqlite3.Connection


_open: weakref.WeakSet[Closable] = weakref.WeakSet()


class _Held(threading.local):
    """Locks that this thread took for its fork(2): other threads may fork at the same moment."""

    def __init__(self) -> None:
        self.databases: list[Closable] = []


_held = _Held()


def close_in_children(database: Closable) -> None:
    """Have each child that is forked while `database` is open close its copy at once."""
    _open.add(database)


def _before() -> None:
    for database in list(_open):
        # One that is in use for so long is waited for by its own users, too, and they give up then.
        if database.lock.acquire(timeout=_WAIT_S):
            _held.databases.append(database)


def _release() -> None:
    while _held.databases:
        _held.databases.pop().lock.release()


def _in_child() -> None:
    for database in _held.databases:
        database.connection.close()
    for database in list(_open):
        _open.discard(database)
    _release()


os.register_at_fork(before=_before, after_in_parent=_release, after_in_child=_in_child)
