"""The database's history: one numbered step a change, applied in order, never edited once released."""

from __future__ import annotations

from typing import Final

MIGRATIONS: Final = (
    # 1: instances. The record is one JSON document; what SQL has to see of it is extracted, so nothing is
    # kept twice.
    """
    CREATE TABLE instance (
        id TEXT PRIMARY KEY,
        body TEXT NOT NULL CHECK (json_valid(body))
    ) STRICT;
    CREATE UNIQUE INDEX instance_name ON instance (json_extract(body, '$.name'));
    """,
    # 2: snapshots. Names are unique for each source; what a fork of a running instance is made from has none.
    """
    CREATE TABLE snapshot (
        id TEXT PRIMARY KEY,
        body TEXT NOT NULL CHECK (json_valid(body))
    ) STRICT;
    CREATE UNIQUE INDEX snapshot_name ON snapshot (
        json_extract(body, '$.source'), json_extract(body, '$.name')
    );
    """,
    # 3: a fork's receipt, which goes with its row. It had been a file in its directory: an inode for each.
    """
    ALTER TABLE instance ADD COLUMN receipt TEXT CHECK (receipt IS NULL OR json_valid(receipt));
    """,
    # 4: the boots that have had this home open, so that a reboot is told from another machine. Boots that are
    # in records already were taken for this machine's until now, and still are. `machine_id()` is
    # `store.boots`'s.
    """
    CREATE TABLE boot (
        boot_id TEXT NOT NULL,
        machine_id TEXT NOT NULL,
        booted_at INTEGER NOT NULL,
        PRIMARY KEY (boot_id, machine_id)
    ) STRICT;
    INSERT INTO boot (boot_id, machine_id, booted_at)
        SELECT found, machine_id(), 0 FROM (
            SELECT json_extract(body, '$.vmm.process.boot_id') AS found FROM instance
            UNION SELECT json_extract(body, '$.owner.boot_id') FROM instance
            UNION SELECT json_extract(body, '$.pending.by.boot_id') FROM instance
            UNION SELECT json_extract(body, '$.maker.boot_id') FROM snapshot
        ) WHERE found IS NOT NULL;
    """,
)
"""`PRAGMA user_version` counts how many of these a database has seen."""
