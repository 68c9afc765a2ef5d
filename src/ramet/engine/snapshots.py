"""Snapshots: immutable, named captures, each in a directory of its own, whatever becomes of its source.

Publish is row (with its maker), directory, parts, manifest, row without a maker; delete is row, then sweep
(I2). A snapshot that is being made belongs to its maker, and is swept when that has died.
"""

from __future__ import annotations

import difflib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import msgspec

from ramet.concurrency import best_effort
from ramet.engine.bring_up import Origin, origin_of
from ramet.engine.capture import Captured, capture
from ramet.engine.changes import changing
from ramet.engine.context import Context
from ramet.engine.manifest import (
    Compressed,
    Manifest,
    Source,
    check_part,
    files_there,
    parts_there,
    read_manifest,
)
from ramet.engine.transfer import with_new_facts
from ramet.engine.unpacking import check_compressed, kept
from ramet.engine.worker import wake_for_capture, wake_for_machine
from ramet.errors import NameTakenError, NotFoundError, RametError, UsageError, WrongStateError
from ramet.host import owners, processes, threads
from ramet.host.clock import now
from ramet.host.files import (
    filesystem_errors,
    fsync_directory,
    open_regular,
    remove_tree,
    sync,
    write_durably,
)
from ramet.host.ownership import require_removable
from ramet.host.share import share_file
from ramet.memory.integrity import digest
from ramet.model.lifecycle import State, article, next_step
from ramet.model.names import check_name, invent_name, new_id
from ramet.model.record import Record, Unreadable
from ramet.model.shapes import PartCheck
from ramet.model.snapshot import SnapshotRecord
from ramet.paths import MANIFEST_FILE

_NAME_TRIES = 20
_TRIES = 3
_SHORTEST_PREFIX = 4


async def create(
    context: Context, record: Record, *, name: str | None, labels: dict[str, str]
) -> SnapshotRecord:
    """Take a snapshot of an instance that runs (it goes on), is paused, or is in standby.

    Raises `WrongStateError`, `NameTakenError` (its source has another of that name), and as `capture`;
    nothing of it is left then, and the instance is as it was.
    """
    async with _making(context, record, name, labels) as (row, directory):
        async with changing(context, record, "capture") as source:
            if source.state is State.STANDBY:
                origin = origin_of(context, source)
                async with kept(origin):
                    await threads.run(_link, origin, source, labels, directory)
            else:
                _require_living(source)
                await capture(context, source, directory, goes_on=True, labels=labels)
        await threads.run(fsync_directory, context.home.snapshots)
        made = publish(context, row)
    wake_for_capture(context.home, directory)
    _wake_for_source(context, record)
    return made


@asynccontextmanager
async def passing(context: Context, record: Record) -> AsyncIterator[tuple[SnapshotRecord, Captured]]:
    """A capture of a living instance that nobody can refer to, for as long as the block lasts.

    Errors as `create`.
    """
    async with _making(context, record, None, {}, nameless=True) as (row, directory):
        async with changing(context, record, "capture") as source:
            _require_living(source)
            captured = await capture(context, source, directory, goes_on=True, digests=False)
        _wake_for_source(context, record)
        try:
            yield row, captured
        finally:
            with anyio.CancelScope(shield=True):
                await best_effort(remove(context, row))  # the forks are there, and are handed over


def _wake_for_source(context: Context, record: Record) -> None:
    """Each capture puts one more file under the disks of a living source."""
    try:
        wake_for_machine(context.home, context.store.get(record.id).machine)
    except NotFoundError:
        pass  # removed meanwhile


def _require_living(source: Record) -> None:
    if source.state not in {State.RUNNING, State.PAUSED}:
        raise WrongStateError(
            f"{source.name} is {article(source.state)}: it can't be captured",
            hint=next_step(source.state, source.name),
        )


@asynccontextmanager
async def _making(
    context: Context, source: Record, name: str | None, labels: dict[str, str], *, nameless: bool = False
) -> AsyncIterator[tuple[SnapshotRecord, Path]]:
    """A row that this process is the maker of, and its directory; neither is left when the block fails."""
    row = reserve(context, source.id, source.name, name=name, labels=labels, nameless=nameless)
    directory = context.home.snapshot(row.id)
    try:
        with filesystem_errors("make", directory):
            directory.mkdir(mode=0o700)
        yield row, directory
    except BaseException:
        with anyio.CancelScope(shield=True):
            await best_effort(remove(context, row))  # what it failed with is what matters
        raise


def reserve(
    context: Context,
    source: str,
    source_name: str,
    *,
    name: str | None,
    labels: dict[str, str],
    nameless: bool = False,
) -> SnapshotRecord:
    """A row whose maker is this process. Without a name one is invented. Raises `NameTakenError`,
    `UsageError`.
    """
    for _ in range(_NAME_TRIES):
        taken = [one.name for one in context.store.snapshots.all() if one.source == source and one.name]
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
    """The row says that it is whole: from here on it can be referred to."""
    return context.store.snapshots.change(
        row.id, lambda one: msgspec.structs.replace(one, maker=None), durable=True
    )


def _link(origin: Origin, source: Record, labels: dict[str, str], directory: Path) -> None:
    """A capture that is there already, under names of its own."""
    manifest = origin.manifest
    for part in files_there(manifest, origin.directory):
        if part in manifest.parts:
            check_part(manifest, origin.directory, part)
        if share_file(origin.directory / part, directory / part).mode != "shared":
            with filesystem_errors("sync", directory / part), open_regular(directory / part) as copy:
                sync(copy)
    said = Source(id=source.id, name=source.name, state=source.state, parent=source.parent)
    described = msgspec.structs.replace(
        with_new_facts(manifest, directory), source=said, labels=labels, created_at=now()
    )
    write_durably(directory / MANIFEST_FILE, described.encoded())


async def remove(context: Context, snapshot: SnapshotRecord) -> bool:
    """Remove a snapshot; its forks don't notice (I3). False when it is gone already.

    Raises `UnavailableError` when it is another user's; nothing was removed then.
    """
    require_removable(context.home.snapshot(snapshot.id), name=f"snapshot {snapshot.title}")
    owners.watch(context.home.root)
    removed = context.store.snapshots.remove(snapshot.id)
    await threads.run(remove_tree, context.home.snapshot(snapshot.id))
    return removed is not None


async def reap(context: Context, directories: Sequence[Path]) -> None:
    """Sweep what killed ramet processes left of snapshots that they were making or removing.

    `directories` were listed before: each that has an owner got its row before it was made.
    """
    rows, unreadable = context.store.snapshots.rows()
    for row in rows:
        if row.maker is not None and processes.is_dead(row.maker):
            await best_effort(remove(context, row))
    known = {row.id for row in rows} | {row.id for row in unreadable}
    for directory in directories:
        if directory.name not in known:
            await best_effort(threads.run(remove_tree, directory))


def published(context: Context) -> list[SnapshotRecord]:
    """The snapshots that people can refer to, oldest first."""
    return _published(context.store.snapshots.all())


def _published(rows: Sequence[SnapshotRecord]) -> list[SnapshotRecord]:
    return [one for one in rows if one.is_published and one.name is not None]


def require_published(context: Context, snapshot_id: str) -> SnapshotRecord:
    """The snapshot of that id. Raises `NotFoundError` when it is gone or not whole yet."""
    for one in published(context):
        if one.id == snapshot_id:
            return one
    raise NotFoundError(f"snapshot {snapshot_id} is gone", hint="`ramet snapshot ls` lists what there is")


def resolve_snapshot(context: Context, reference: str, *, of: Record | None = None) -> SnapshotRecord:
    """The snapshot that `reference` names: by `SOURCE/NAME`, by name where only one has it, by id, by a
    unique beginning of an id of at least 4 digits. `of` looks only among those of one instance.

    Raises `NotFoundError`, with near misses in its hint; `UsageError` when it fits several.
    """
    rows, unreadable = context.store.snapshots.rows()
    candidates = [one for one in _published(rows) if of is None or one.source == of.id]
    tests: tuple[Callable[[SnapshotRecord], bool], ...] = (
        lambda one: one.title == reference,
        lambda one: one.name == reference,
        lambda one: one.id == reference,
        lambda one: _begins(one, reference),
    )
    for test in tests:
        found = [one for one in candidates if test(one)]
        if len(found) == 1:
            return found[0]
        if found:
            several = ", ".join(f"{one.title} ({one.id})" for one in found)
            raise UsageError(
                f"{reference!r} may be any of several snapshots: {several}", hint="say SOURCE/NAME, or the id"
            )
    for row in unreadable:
        if reference in (row.id, row.name) or _begins(row, reference):
            raise context.store.snapshots.cannot_read(row)
    words = [word for one in candidates for word in (one.name or "", one.title)]
    near = difflib.get_close_matches(reference, words, n=1)
    raise NotFoundError(
        f"no snapshot {reference!r}{f' of {of.name}' if of is not None else ''}",
        hint=f"did you mean {near[0]}?" if near else "`ramet snapshot ls` lists what there is",
    )


def _begins(row: SnapshotRecord | Unreadable, reference: str) -> bool:
    return len(reference) >= _SHORTEST_PREFIX and row.id.startswith(reference)


def latest_of(context: Context, record: Record) -> SnapshotRecord:
    """The youngest snapshot of an instance. Raises `NotFoundError` when it has none."""
    own = [one for one in published(context) if one.source == record.id]
    if not own:
        raise NotFoundError(
            f"{record.name} has no snapshot", hint=f"`ramet snapshot create {record.name}` takes one"
        )
    return own[-1]


def origin_of_snapshot(context: Context, row: SnapshotRecord, manifest: Manifest | None = None) -> Origin:
    """The capture that a snapshot is. Raises `DamagedError`, or `NotFoundError` when it has just been
    removed.
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


async def verify(context: Context, row: SnapshotRecord) -> list[PartCheck]:
    """Read every part of a snapshot and hold it against its digest: a result a part, nothing raised for a bad
    one.

    Raises `DamagedError` when its manifest can't be read.
    """
    for tries_left in reversed(range(_TRIES)):
        origin = origin_of_snapshot(context, row)
        async with kept(origin):
            checks = await _checks(origin)
        if all(one.ok for one in checks) or tries_left == 0:
            return checks
        if origin_of_snapshot(context, row).manifest == origin.manifest:
            return checks
        # Compacted, compressed or decompressed meanwhile: the same content, in other files.
    raise AssertionError


async def _checks(origin: Origin) -> list[PartCheck]:
    manifest, directory = origin.manifest, origin.directory
    checks = [
        await threads.run(_check, origin, name, abandon_on_cancel=True)
        for name in parts_there(manifest, directory)
    ]
    if manifest.memory.compressed is not None:
        checks.append(await _check_compressed(origin, manifest.memory.compressed))
    return checks


async def _check_compressed(origin: Origin, packed: Compressed) -> PartCheck:
    problem = None
    try:
        await check_compressed(origin.directory, origin.manifest)
    except RametError as error:
        problem = error.message
    return PartCheck(
        name=packed.file, ok=problem is None, size_bytes=packed.facts.size_bytes, problem=problem
    )


def _check(origin: Origin, name: str) -> PartCheck:
    part = origin.manifest.parts[name]
    try:
        check_part(origin.manifest, origin.directory, name)
        found = digest(origin.directory / name)
    except RametError as error:
        return PartCheck(name=name, ok=False, size_bytes=part.facts.size_bytes, problem=error.message)
    problem = None if found == part.digest else f"its content has changed: {found}, was {part.digest}"
    return PartCheck(name=name, ok=problem is None, size_bytes=part.facts.size_bytes, problem=problem)
