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
)
"""`PRAGMA user_version` counts how many of these a database has seen."""
