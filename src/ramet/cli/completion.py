"""Completion of references in a shell: reads the home's database and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ramet.model.record import Record
    from ramet.model.snapshot import SnapshotRecord


def complete_reference(incomplete: str) -> list[tuple[str, str]]:
    """Names of instances that begin so, each with its state; ids when no name does. Silent about every
    trouble.
    """
    records, _ = _known()
    names = [(one.name, str(one.state)) for one in records if one.name.startswith(incomplete)]
    return names or [(one.id, one.name) for one in records if one.id.startswith(incomplete)]


def complete_snapshot(incomplete: str) -> list[tuple[str, str]]:
    """Snapshots, SOURCE/NAME, that begin so; ids when none does."""
    _, snapshots = _known()
    titles = [(one.title, "snapshot") for one in snapshots if one.title.startswith(incomplete)]
    return titles or [(one.id, one.title) for one in snapshots if one.id.startswith(incomplete)]


def complete_source(incomplete: str) -> list[tuple[str, str]]:
    """What can be forked: instances, then snapshots."""
    return complete_reference(incomplete) + complete_snapshot(incomplete)


def _known() -> tuple[list[Record], list[SnapshotRecord]]:
    try:
        return _read()
    except Exception:
        return [], []  # nothing can be completed then, and a shell's prompt is no place to say why


def _read() -> tuple[list[Record], list[SnapshotRecord]]:
    from ramet import config
    from ramet.paths import Home
    from ramet.store.records import Store

    database = Home(config.home_directory()).database
    if not database.exists():
        return [], []
    store = Store(database)
    try:
        snapshots = [one for one in store.snapshots.all() if one.is_published and one.name is not None]
        return store.all(), snapshots
    finally:
        store.close()
