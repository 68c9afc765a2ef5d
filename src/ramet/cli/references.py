"""What a word on the command line refers to, where it may be an instance or a snapshot.

An instance's name or id comes before a snapshot's; the beginning of an id comes last.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from ramet.cli import output
from ramet.errors import NotFoundError, UnreadableError, UsageError

if TYPE_CHECKING:
    from ramet.engine.host import Host
    from ramet.engine.snapshot import Snapshot
    from ramet.engine.vm import VM

_LIST = "`ramet ps -a` and `ramet snapshot ls` list what there is"


async def instance(host: Host, reference: str, *, instead: str = "ramet fork") -> VM:
    """The instance of that name or id. `instead` is the command that takes a snapshot, for the hint.

    Raises `NotFoundError`, which says so when it is a snapshot; `UsageError`.
    """
    try:
        return await host.get(reference)
    except NotFoundError as error:
        if await _snapshot(host, reference) is None:
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
        if await _instance(host, reference) is None:
            raise
        raise NotFoundError(
            f"no snapshot {reference!r}: it is an instance", hint=f"`{instead} {reference}` is for instances"
        ) from error


async def source(host: Host, reference: str) -> VM | Snapshot:
    """What is to be forked.

    Raises `NotFoundError`, with near misses of both kinds in its hint; `UsageError` when it fits several.
    """
    several: UsageError | UnreadableError | None = None
    vm: VM | None = None
    try:
        vm = await _instance(host, reference)
    except (UsageError, UnreadableError) as error:
        several = error
    if vm is not None and reference in (vm.name, vm.id):
        return vm
    found = await _snapshot(host, reference)
    # A slash stands in no name and in no id: that was SOURCE/NAME.
    if found is not None and ("/" in reference or reference in (found.name, found.id)):
        return found
    if several is not None:
        raise several
    if vm is not None and found is not None:
        raise UsageError(
            f"{reference!r} is the beginning of several ids: {vm.id} ({vm.name}), {found.id} (the snapshot "
            f"{found.name})",
            hint="give more digits",
        )
    if (either := vm or found) is None:
        raise NotFoundError(f"no instance or snapshot {reference!r}", hint=await _hint(host, reference))
    return either


async def warn_of_unreadable(host: Host, *kinds: str) -> None:
    """Say on standard error which records of those kinds can't be read: they are in no list as themselves."""
    for one in await host.unreadable():
        if one.kind in kinds:
            output.warn(f"ramet: the {one.kind} {one.name} ({one.id}) can't be read: {one.problem}")


async def _instance(host: Host, reference: str) -> VM | None:
    try:
        return await host.get(reference)
    except NotFoundError:
        return None


async def _snapshot(host: Host, reference: str) -> Snapshot | None:
    try:
        return await host.snapshot(reference)
    except NotFoundError:
        return None


async def _hint(host: Host, reference: str) -> str:
    instances = [one.name for one in await host.list(everything=True)]
    titles: dict[str, str] = {}
    for one in await host.snapshots():
        title = f"{one.source_name}/{one.name}"
        titles[one.name] = titles[title] = title
    near = [
        *difflib.get_close_matches(reference, instances, n=1),
        *(f"the snapshot {titles[word]}" for word in difflib.get_close_matches(reference, titles, n=1)),
    ]
    return f"did you mean {' or '.join(near)}?" if near else _LIST
