"""Resolve a reference that may name an instance or a snapshot.

An instance's name or id comes before a snapshot's; the beginning of an id comes last.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from ramet.errors import NotFoundError, UnreadableError, UsageError

if TYPE_CHECKING:
    from ramet.api.handles import VM, Snapshot
    from ramet.api.host import Host

_LIST = "`ramet ps -a` and `ramet snapshot ls` list all sources"


async def resolve(host: Host, reference: str) -> VM | Snapshot:
    """Return the instance or snapshot that `reference` names, such as the source of a fork.

    Raises `NotFoundError`, with near misses of both kinds in its hint; `UsageError` when it fits several.
    """
    several: UsageError | UnreadableError | None = None
    vm: VM | None = None
    try:
        vm = await find_instance(host, reference)
    except (UsageError, UnreadableError) as error:
        several = error
    if vm is not None and reference in (vm.name, vm.id):
        return vm
    snapshot = await find_snapshot(host, reference)
    # A slash stands in no name and in no id: that was SOURCE/NAME.
    if snapshot is not None and ("/" in reference or reference in (snapshot.name, snapshot.id)):
        return snapshot
    if several is not None:
        raise several
    if vm is not None and snapshot is not None:
        raise UsageError(
            f"{reference!r} is the beginning of several ids: {vm.id} ({vm.name}),"
            f" {snapshot.id} (the snapshot {snapshot.name})",
            hint="give more digits",
        )
    if (either := vm or snapshot) is None:
        raise NotFoundError(f"no instance or snapshot {reference!r}", hint=await _hint(host, reference))
    return either


async def find_instance(host: Host, reference: str) -> VM | None:
    """Return the instance that `reference` names, or None. Raises `UsageError`, `UnreadableError`."""
    try:
        return await host.get(reference)
    except NotFoundError:
        return None


async def find_snapshot(host: Host, reference: str) -> Snapshot | None:
    """Return the snapshot that `reference` names, or None. Raises `UsageError`."""
    try:
        return await host.snapshot(reference)
    except NotFoundError:
        return None


async def _hint(host: Host, reference: str) -> str:
    instances = [instance.name for instance in await host.list(everything=True)]
    titles: dict[str, str] = {}
    for snapshot in await host.snapshots():
        title = f"{snapshot.source_name}/{snapshot.name}"
        titles[snapshot.name] = titles[title] = title
    near = [
        *difflib.get_close_matches(reference, instances, n=1),
        *(f"the snapshot {titles[word]}" for word in difflib.get_close_matches(reference, titles, n=1)),
    ]
    return f"did you mean {' or '.join(near)}?" if near else _LIST
