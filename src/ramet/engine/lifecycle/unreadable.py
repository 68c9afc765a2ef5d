"""References to instances, and rows of the store that can't be read: listed, and removed on demand.

A damaged record tells nothing certain about its guest, which may run. Its directory and its processes are
left alone until a user asks for its removal.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Final

import anyio

from ramet.engine.context import Context
from ramet.engine.manifest import read_manifest
from ramet.errors import DamagedError, NotFoundError, RametError, UnavailableError, UsageError
from ramet.model.names import ID_DIGITS, resolve
from ramet.model.record import Record, Unreadable
from ramet.model.schema import UnreadableRecord
from ramet.system import processes, sockets, spawn, threads
from ramet.system.files import remove_tree

_ID: Final = re.compile(rf"[0-9a-f]{{{ID_DIGITS}}}")


def resolve_instance(context: Context, reference: str) -> Record:
    """Return the instance that `reference` names.

    Raises `NotFoundError`, `UsageError`, and `UnreadableError` when the instance's record can't be read.
    """
    records, unreadable = context.store.rows()
    candidates: list[Record | Unreadable] = [*records, *unreadable]
    match = resolve(reference, candidates)
    if isinstance(match, Unreadable):
        raise context.store.cannot_read(match)
    return match


def listed(context: Context) -> list[UnreadableRecord]:
    """List the unreadable records of a home: rows, and snapshots without a readable manifest."""
    shown = [_shown(context, "instance", row) for row in context.store.unreadable()]
    rows, unreadable = context.store.snapshots.rows()
    shown += [_shown(context, "snapshot", row) for row in unreadable]
    for row in rows:
        directory = context.home.snapshot(row.id)
        try:
            if row.is_published:
                read_manifest(directory)
        except DamagedError as error:
            shown.append(
                UnreadableRecord(
                    kind="snapshot",
                    id=row.id,
                    name=row.title,
                    directory=str(directory),
                    problem=error.message,
                )
            )
    return shown


def _shown(context: Context, kind: str, row: Unreadable) -> UnreadableRecord:
    is_instance = kind == "instance"
    directory = context.home.instance(row.id) if is_instance else context.home.snapshot(row.id)
    return UnreadableRecord(
        kind="instance" if is_instance else "snapshot",
        id=row.id,
        name=row.name,
        directory=str(directory),
        problem=row.problem,
    )


async def remove(context: Context, reference: str) -> str:
    """Remove an instance or a snapshot whose row can't be read, with its VMM and its files. Returns its id.

    Its VMM ends first. When the VMM can't be ended, or it is unknown whether it has ended, `UnavailableError`
    is raised and nothing has changed. Raises `NotFoundError` when no unreadable row has that name.
    """
    instances = context.store.unreadable()
    rows = [*instances, *context.store.snapshots.unreadable()]
    try:
        row = resolve(reference, rows)
    except NotFoundError as error:
        raise NotFoundError(
            f"no unreadable record {reference!r}", hint="`ramet ps` and `ramet snapshot ls` name them"
        ) from error
    if not _ID.fullmatch(row.id):
        raise UsageError(f"{row.id!r} is no id: nothing is removed by it")
    if row in instances:
        await _end_its_vmm(context, row)
        context.store.forget(row.id)
        places = [context.home.instance(row.id), context.home.staged(row.id)]
    else:
        context.store.snapshots.forget(row.id)
        places = [context.home.snapshot(row.id)]
    with anyio.CancelScope(shield=True):
        for place in places:
            if place.exists():
                await threads.run(remove_tree, place)
    return row.id


async def _end_its_vmm(context: Context, row: Unreadable) -> None:
    """End all processes that run for an unreadable row, found by the row and by its directory."""
    places = (context.home.instance(row.id), context.home.staged(row.id))
    running = [process for place in places for process in spawn.spawned_in(place)]
    if row.vmm is not None and row.vmm not in running:
        running.append(row.vmm)
    try:
        for process in running:
            await processes.kill(process)
    except (RametError, OSError) as error:
        raise UnavailableError(
            f"the VMM of {row.name} can't be ended: {error}",
            hint="its record, its disks and its guest are unchanged",
        ) from error
    if any(spawn.spawned_in(place) for place in places):
        raise UnavailableError(
            f"the VMM of {row.name} still runs", hint="its record and its disks are unchanged"
        )
    if any(map(_is_listened_in, places)):
        raise UnavailableError(
            f"the VMM of {row.name} can't be seen from here, and answers",
            hint="run ramet in the container where it was started, or on the host; "
            "its record, its disks and its guest are unchanged",
        )


def _is_listened_in(directory: Path) -> bool:
    """Tell whether a process listens on a socket in `directory`, or may.

    A VMM of another PID namespace isn't among the visible processes, and its row doesn't name it.
    """
    with suppress(FileNotFoundError):
        for entry in directory.iterdir():
            if not entry.is_socket():
                continue
            try:
                sockets.connect(directory, entry.name).close()
            except (ConnectionRefusedError, FileNotFoundError):
                continue  # its process has ended
            except OSError:
                return True  # its queue is full, or it is another user's
            return True
    return False
