"""The boots of machines that have had a home open, kept in the home's database.

After a reboot they tell that processes of an earlier boot are dead. A boot that isn't among them is another
machine's, whose processes may live.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager

from ramet.system.machine import Boot, machine_id, past_boots, this_boot
from ramet.system.process_ref import know_past_boots


def offer_machine_id(connection: sqlite3.Connection) -> None:
    """Define the SQL function `machine_id()`, which a migration calls."""
    connection.create_function("machine_id", 0, machine_id)


def note_boot(
    connection: sqlite3.Connection, transaction: Callable[[], AbstractContextManager[None]]
) -> None:
    """Record that this boot has the home open, if it isn't recorded, and remember the boots before it.

    Raises `sqlite3.Error`, `UnavailableError` without /proc.
    """
    present = this_boot()
    known = _known(connection)
    if (present.boot_id, present.machine_id) not in {(boot.boot_id, boot.machine_id) for boot in known}:
        with transaction():
            connection.execute(
                "INSERT OR IGNORE INTO boot (boot_id, machine_id, booted_at) VALUES (?, ?, ?)", present
            )
    know_past_boots(past_boots(known))


def _known(connection: sqlite3.Connection) -> list[Boot]:
    return [Boot(*row) for row in connection.execute("SELECT boot_id, machine_id, booted_at FROM boot")]
