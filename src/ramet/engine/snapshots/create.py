"""Create a snapshot, named or temporary."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import msgspec

from ramet.concurrency import best_effort
from ramet.engine.capture.archive import with_new_facts
from ramet.engine.capture.capture import Captured, capture
from ramet.engine.context import Context
from ramet.engine.lifecycle.jobs import job
from ramet.engine.maintenance.decompression import raw_file_kept
from ramet.engine.maintenance.requests import request_for_capture, request_for_machine
from ramet.engine.manifest import (
    Source,
    check_part,
    files_there,
)
from ramet.engine.origin import Origin, origin_of
from ramet.engine.snapshots.catalog import publish, remove, reserve
from ramet.errors import NotFoundError, WrongStateError
from ramet.model.lifecycle import State, article, next_step
from ramet.model.record import Record
from ramet.model.snapshot import SnapshotRecord
from ramet.paths import MANIFEST_FILE
from ramet.system import threads
from ramet.system.clock import now
from ramet.system.files import filesystem_errors, open_regular
from ramet.system.publishing import fsync_directory, sync, write_durably
from ramet.system.share import link_or_copy


async def create(
    context: Context, record: Record, *, name: str | None, labels: dict[str, str]
) -> SnapshotRecord:
    """Take a snapshot of an instance that runs (and keeps running), is paused, or is in standby.

    Raises `WrongStateError`, `NameTakenError` (its source has another of that name), and as `capture`;
    nothing of the snapshot is left then, and the instance has its state from before.
    """
    async with _making(context, record, name, labels) as (row, directory):
        async with job(context, record, "capture") as source:
            if source.state is State.STANDBY:
                origin = origin_of(context, source)
                async with raw_file_kept(origin):
                    await threads.run(_link, origin, source, labels, directory)
            else:
                _require_living(source)
                await capture(context, source, directory, goes_on=True, labels=labels)
        await threads.run(fsync_directory, context.home.snapshots)
        made = publish(context, row)
    request_for_capture(context.home, directory)
    _request_for_source(context, record)
    return made


@asynccontextmanager
async def temporary_snapshot(
    context: Context, record: Record
) -> AsyncIterator[tuple[SnapshotRecord, Captured]]:
    """Yield a capture of a living instance that nobody can refer to, and remove it after the block.

    Errors as `create`.
    """
    async with _making(context, record, None, {}, nameless=True) as (row, directory):
        async with job(context, record, "capture") as source:
            _require_living(source)
            captured = await capture(context, source, directory, goes_on=True, digests=False)
        _request_for_source(context, record)
        try:
            yield row, captured
        finally:
            with anyio.CancelScope(shield=True):
                await best_effort(remove(context, row))  # the forks exist, and are returned


def _request_for_source(context: Context, record: Record) -> None:
    """Request a shortening if necessary: each capture puts one more file under a living source's disks."""
    try:
        request_for_machine(context.home, context.store.get(record.id).machine)
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
    """Yield a row whose maker is this process, and its directory; remove both when the block fails."""
    row = reserve(context, source.id, source.name, name=name, labels=labels, nameless=nameless)
    directory = context.home.snapshot(row.id)
    try:
        with filesystem_errors("make", directory):
            directory.mkdir(mode=0o700)
        yield row, directory
    except BaseException:
        with anyio.CancelScope(shield=True):
            await best_effort(remove(context, row))  # the first error matters
        raise


def _link(origin: Origin, source: Record, labels: dict[str, str], directory: Path) -> None:
    """Link an existing capture under new names."""
    manifest = origin.manifest
    for part in files_there(manifest, origin.directory):
        if part in manifest.parts:
            check_part(manifest, origin.directory, part)
        if link_or_copy(origin.directory / part, directory / part).mode != "shared":
            with filesystem_errors("sync", directory / part), open_regular(directory / part) as copy:
                sync(copy)
    taken_from = Source(id=source.id, name=source.name, state=source.state, parent=source.parent)
    described = msgspec.structs.replace(
        with_new_facts(manifest, directory), source=taken_from, labels=labels, created_at=now()
    )
    write_durably(directory / MANIFEST_FILE, described.encoded())
