"""Snapshots: immutable, named captures, each in its own directory, independent of its source.

Publish is row (with its maker), directory, parts, manifest, row without a maker; delete is row, then
directory (I2). A snapshot that is being made belongs to its maker, and is deleted when the maker has died.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import msgspec

from ramet.concurrency import best_effort
from ramet.engine.context import Context
from ramet.engine.manifest import (
    Manifest,
    read_manifest,
)
from ramet.engine.origin import Origin
from ramet.errors import NameTakenError, NotFoundError, RametError, UsageError
from ramet.model.names import check_name, invent_name, new_id
from ramet.model.record import Record, Unreadable
from ramet.model.snapshot import SnapshotRecord
from ramet.system import liveness, owners, threads
from ramet.system.clock import now
from ramet.system.files import remove_tree
from ramet.system.ownership import require_removable

_NAME_TRIES = 20
_SHORTEST_PREFIX = 4


def reserve(
    context: Context,
    source: str,
    source_name: str,
    *,
    name: str | None,
    labels: dict[str, str],
    nameless: bool = False,
) -> SnapshotRecord:
    """Make a row whose maker is this process. Raises `NameTakenError`, `UsageError`.

    Without `name` a name is invented.
    """
    for _ in range(_NAME_TRIES):
        taken = [row.name for row in context.store.snapshots.all() if row.source == source and row.name]
        chosen = check_name(name) if name is not None else None if nameless else invent_name(taken)
        row = SnapshotRecord(
            id=new_id(),
            name=chosen,
            source=source,
            source_name=source_name,
            created_at=now(),
            labels=labels,
            maker=owners.owner(context.home.root),
        )
        try:
            context.store.snapshots.add([row])
        except NameTakenError:
            if name is not None:
                raise
            continue
        return row
    raise NameTakenError(f"no free name for a snapshot of {source_name}", hint="give it one with --name")


def publish(context: Context, row: SnapshotRecord) -> SnapshotRecord:
    """Mark the row as whole: from here on the snapshot can be referred to."""
    return context.store.snapshots.change(
        row.id, lambda row: msgspec.structs.replace(row, maker=None), durable=True
    )


async def remove(context: Context, snapshot: SnapshotRecord) -> bool:
    """Remove a snapshot; its forks don't notice (I3). False when it is gone already.

    Raises `UnavailableError` when it is another user's; nothing was removed then.
    """
    require_removable(context.home.snapshot(snapshot.id), name=f"snapshot {snapshot.title}")
    owners.watch(context.home.root)
    removed = context.store.snapshots.remove(snapshot.id)
    await threads.run(remove_tree, context.home.snapshot(snapshot.id))
    return removed is not None


async def gc(context: Context, directories: Sequence[Path]) -> None:
    """Delete what killed ramet processes left of snapshots that they were making or removing.

    `directories` were listed before: each that has an owner got its row before it was made.
    """
    rows, unreadable = context.store.snapshots.rows()
    for row in rows:
        if row.maker is not None and liveness.is_dead(row.maker):
            await best_effort(remove(context, row))
    known = {row.id for row in rows} | {row.id for row in unreadable}
    for directory in directories:
        if directory.name not in known:
            await best_effort(threads.run(remove_tree, directory))


def published(context: Context) -> list[SnapshotRecord]:
    """Return the snapshots that people can refer to, oldest first."""
    return _published(context.store.snapshots.all())


def _published(rows: Sequence[SnapshotRecord]) -> list[SnapshotRecord]:
    return [row for row in rows if row.is_published and row.name is not None]


def require_published(context: Context, snapshot_id: str) -> SnapshotRecord:
    """Return the snapshot of that id. Raises `NotFoundError` when it is gone or not whole yet."""
    for row in published(context):
        if row.id == snapshot_id:
            return row
    raise NotFoundError(f"snapshot {snapshot_id} is gone", hint="`ramet snapshot ls` lists all snapshots")


def resolve_snapshot(context: Context, reference: str, *, of: Record | None = None) -> SnapshotRecord:
    """Return the snapshot that `reference` names.

    A reference is `SOURCE/NAME`, a unique name, an id, or unique first digits of an id (at least 4). `of`
    looks only among the snapshots of one instance.

    Raises `NotFoundError`, with near misses in its hint; `UsageError` when it fits several.
    """
    rows, unreadable = context.store.snapshots.rows()
    candidates = [row for row in _published(rows) if of is None or row.source == of.id]
    tests: tuple[Callable[[SnapshotRecord], bool], ...] = (
        lambda row: row.title == reference,
        lambda row: row.name == reference,
        lambda row: row.id == reference,
        lambda row: _begins(row, reference),
    )
    for test in tests:
        matches = [row for row in candidates if test(row)]
        if len(matches) == 1:
            return matches[0]
        if matches:
            several = ", ".join(f"{row.title} ({row.id})" for row in matches)
            raise UsageError(
                f"{reference!r} may be any of several snapshots: {several}", hint="say SOURCE/NAME, or the id"
            )
    for row in unreadable:
        if reference in (row.id, row.name) or _begins(row, reference):
            raise context.store.snapshots.cannot_read(row)
    words = [word for row in candidates for word in (row.name or "", row.title)]
    near = difflib.get_close_matches(reference, words, n=1)
    raise NotFoundError(
        f"no snapshot {reference!r}{f' of {of.name}' if of is not None else ''}",
        hint=f"did you mean {near[0]}?" if near else "`ramet snapshot ls` lists all snapshots",
    )


def _begins(row: SnapshotRecord | Unreadable, reference: str) -> bool:
    return len(reference) >= _SHORTEST_PREFIX and row.id.startswith(reference)


def latest_of(context: Context, record: Record) -> SnapshotRecord:
    """Return the latest snapshot of an instance. Raises `NotFoundError` when it has none."""
    own = [row for row in published(context) if row.source == record.id]
    if not own:
        raise NotFoundError(
            f"{record.name} has no snapshot", hint=f"`ramet snapshot create {record.name}` takes one"
        )
    return own[-1]


def origin_of_snapshot(context: Context, row: SnapshotRecord, manifest: Manifest | None = None) -> Origin:
    """Return a snapshot's capture.

    Raises `DamagedError`, or `NotFoundError` when it has just been removed.
    """
    directory = context.home.snapshot(row.id)
    there = partial(context.store.snapshots.get, row.id)
    if manifest is None:
        try:
            manifest = read_manifest(directory)
        except RametError:
            there()
            raise
    named = row.name is not None
    return Origin(
        directory=directory,
        manifest=manifest,
        name=row.source_name,
        parent=row.source,
        snapshot=row.id if named else None,
        title=row.title if named else row.source_name,
        require_there=there,
    )
