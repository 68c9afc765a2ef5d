"""References on the command line: what people are told when a reference names something of the other kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ramet.api.references import find_instance, find_snapshot
from ramet.cli import output
from ramet.errors import NotFoundError

if TYPE_CHECKING:
    from ramet.api.handles import VM, Snapshot
    from ramet.api.host import Host


async def instance(host: Host, reference: str, *, instead: str = "ramet fork") -> VM:
    """The instance of that name or id. `instead` is the command that takes a snapshot, for the hint.

    Raises `NotFoundError`, which says so when it is a snapshot; `UsageError`.
    """
    try:
        return await host.get(reference)
    except NotFoundError as error:
        if await find_snapshot(host, reference) is None:
            raise
        raise NotFoundError(
            f"no instance {reference!r}: it is a snapshot", hint=f"`{instead} {reference}` is for snapshots"
        ) from error


async def snapshot(host: Host, reference: str, *, instead: str) -> Snapshot:
    """The snapshot of that name or id. `instead` is the command that takes an instance, for the hint.

    Raises `NotFoundError`, which says so when it is an instance; `UsageError`.
    """
    try:
        return await host.snapshot(reference)
    except NotFoundError as error:
        if await find_instance(host, reference) is None:
            raise
        raise NotFoundError(
            f"no snapshot {reference!r}: it is an instance", hint=f"`{instead} {reference}` is for instances"
        ) from error


async def warn_of_unreadable(host: Host, *kinds: str) -> None:
    """Say on standard error which records of those kinds can't be read: they are in no list as themselves."""
    for row in await host.unreadable():
        if row.kind in kinds:
            output.warn(f"ramet: the {row.kind} {row.name} ({row.id}) can't be read: {row.problem}")
