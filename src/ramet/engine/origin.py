"""The capture that something is restored from: a template's, a snapshot's, or one in standby."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ramet.engine.context import Context
from ramet.engine.manifest import (
    Manifest,
    check_part,
    check_vmstate,
    parts_to_read,
    read_manifest,
)
from ramet.errors import DamagedError, WrongStateError
from ramet.model.lifecycle import State
from ramet.model.record import Record
from ramet.paths import (
    VMSTATE_FILE,
)
from ramet.system import threads
from ramet.units import MIB


class Origin(NamedTuple):
    """A capture that guests are restored from."""

    directory: Path
    manifest: Manifest
    name: str
    """The name from which its guests' names are made."""
    parent: str
    """The id of the captured instance."""
    snapshot: str | None
    """The id of the snapshot that it is, if people can refer to it."""
    title: str
    """The name in messages."""
    require_there: Callable[[], object]
    """Raises `NotFoundError` once the capture has been removed, which is then reported instead of damage."""

    @property
    def ref(self) -> str:
        """The reference that commands take: an id."""
        return self.snapshot or self.parent


def origin_of(context: Context, record: Record) -> Origin:
    """Return the capture in an instance's own directory: a template's, or a standby's.

    Raises `DamagedError`, or `NotFoundError` when it has just been removed.
    """
    directory = context.directory(record)
    try:
        manifest = read_manifest(directory)
    except DamagedError:
        _require_capture(context, record)
        raise
    return Origin(
        directory=directory,
        manifest=manifest,
        name=record.name,
        parent=record.id,
        snapshot=None,
        title=record.name,
        require_there=partial(_require_capture, context, record),
    )


def _require_capture(context: Context, record: Record) -> None:
    now = context.store.get(record.id)
    if now.state not in {State.TEMPLATE, State.STANDBY}:
        raise WrongStateError(f"{now.name} has just become {now.state}", hint="try again")


async def require_parts(origin: Origin) -> None:
    """Check each part against the manifest, once per call: a missing part is damage, not a failed link.

    Content is read if the facts alone don't decide, in a thread; the vmstate's always. Raises `DamagedError`,
    but not for a capture that was compacted meanwhile: `take_parts` looks again.
    """
    try:
        for part in parts_to_read(origin.manifest, origin.directory):
            await threads.run(check_part, origin.manifest, origin.directory, part)
        vmstate = partial(check_vmstate, origin.manifest, origin.directory)
        # A thread costs as much as the 64 KiB that a usual one has.
        is_large = origin.manifest.parts[VMSTATE_FILE].facts.size_bytes > MIB
        await threads.run(vmstate) if is_large else vmstate()
    except DamagedError as error:
        origin.require_there()
        if read_manifest(origin.directory) != origin.manifest:
            return
        if origin.manifest.memory.compressed is None:
            raise
        raise DamagedError(
            error.message,
            hint=f"if it is the memory, `ramet snapshot decompress {origin.ref}` makes it anew from the"
            " compressed file",
        ) from error
