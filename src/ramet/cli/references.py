"""References on the command line, and the error when a reference names the other kind of thing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ramet.api.references import find_instance, find_snapshot
from ramet.cli import output
from ramet.errors import NotFoundError

if TYPE_CHECKING:
    from ramet.api.handles import VM, Snapshot
    from ramet.api.host import Host


async def instance(host: Host, reference: str, *, instead: str = "ramet fork") -> VM:
    """Return the instance with that name or id. The hint names `instead`, the command for snapshots.

    Raises `NotFoundError`, which says so when the reference is a snapshot's; `UsageError`.
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
    """Return the snapshot with that name or id. The hint names `instead`, the command for instances.

    Raises `NotFoundError`, which says so when the reference is an instance's; `UsageError`.
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
    """List the records of those kinds that can't be read on standard error: no other list has them."""
    for row in await host.unreadable():
        if row.kind in kinds:
            output.warn(f"ramet: the {row.kind} {row.name} ({row.id}) can't be read: {row.problem}")
