"""The names in a home, read from its database: for completion, which opens no home."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from ramet import config
from ramet.images.library.places import Places
from ramet.images.library.shelf import Shelf
from ramet.paths import Home
from ramet.store.records import Store


class InstanceEntry(NamedTuple):
    """An instance's row. `state` is the recorded state: no process is looked at."""

    id: str
    name: str
    state: str
    labels: dict[str, str]


class SnapshotEntry(NamedTuple):
    """A snapshot's row. `title` is SOURCE/NAME, `source` the id of its source."""

    id: str
    title: str
    name: str
    source: str
    labels: dict[str, str]


class Names(NamedTuple):
    """The rows of a home."""

    instances: list[InstanceEntry]
    snapshots: list[SnapshotEntry]


def read_image_names(home: str | os.PathLike[str] | None = None) -> list[str]:
    """Read the names of container images in `home`, the user's own unless given.

    A home that isn't there has none; nothing is made or locked.
    """
    root = Home(config.home_directory() if home is None else Path(home)).root
    names = Shelf(Places(root / "images")).names()
    return list(dict.fromkeys(entry.name.removesuffix(":latest") for entry in names))


def read_names(home: str | os.PathLike[str] | None = None) -> Names:
    """Read the names in `home`, the user's own unless given. A home that isn't there has none.

    This takes milliseconds: nothing is undone, made or locked. Raises `StoreError` when the database can't be
    read.
    """
    database = Home(config.home_directory() if home is None else Path(home)).database
    if not database.exists():
        return Names([], [])
    store = Store(database)
    try:
        return Names(
            [
                InstanceEntry(record.id, record.name, str(record.state), record.labels)
                for record in store.all()
            ],
            [
                SnapshotEntry(row.id, row.title, row.name, row.source, row.labels)
                for row in store.snapshots.all()
                if row.is_published and row.name is not None
            ],
        )
    finally:
        store.close()
