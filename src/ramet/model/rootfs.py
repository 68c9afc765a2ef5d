"""The place for what a container image's guest writes to its root, as users name it."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from ramet.errors import UsageError
from ramet.model.disks import LARGEST_DISK_BYTES
from ramet.model.schema import GuestRoot
from ramet.units import GIB, MIB, format_bytes, parse_size

DEFAULT_ROOT_BYTES: Final = 10 * GIB
"""The size of a root disk; its file has what was written."""
_LITTLE_BYTES: Final = MIB
SMALLEST_ROOT_BYTES: Final = {"disk": 64 * MIB, "ram": 1 * MIB}


class Rootfs(NamedTuple):
    """The place for what a guest writes to its root: a disk, or its RAM. `size_bytes` None: the default."""

    kind: Literal["disk", "ram"] = "disk"
    size_bytes: int | None = None


def parse_rootfs(text: str) -> Rootfs:
    """Parse `disk`, `disk:SIZE`, `ram` or `ram:SIZE`. Raises `UsageError`."""
    kind, colon, size = text.partition(":")
    if kind not in {"disk", "ram"} or (colon and not size):
        raise UsageError(
            f"{text!r} is no place for a root filesystem",
            hint="say disk, disk:SIZE, ram or ram:SIZE, as in --rootfs disk:20G",
        )
    size_bytes = parse_size(size) if colon else None
    smallest, largest = SMALLEST_ROOT_BYTES[kind], LARGEST_DISK_BYTES
    if size_bytes is not None and not smallest <= size_bytes <= largest:
        raise UsageError(
            f"a root filesystem of {format_bytes(size_bytes)} can't be",
            hint=f"give it {format_bytes(smallest)} to {format_bytes(largest)}",
        )
    return Rootfs("ram" if kind == "ram" else "disk", size_bytes)


def why_full(name: str, root: GuestRoot) -> str | None:
    """Tell that the root of the instance `name` is full, and what gives it more room; None if it isn't.

    A program that found no room rarely says which option helps, and may not say why it failed at all.
    """
    if root.free_bytes >= _LITTLE_BYTES and root.free_files != 0:
        return None
    what = f"{format_bytes(root.free_bytes)} of {format_bytes(root.size_bytes)} left"
    if root.free_bytes >= _LITTLE_BYTES:
        what = f"no more files in {format_bytes(root.size_bytes)}"
    if root.kind == "ram":
        return (
            f"the root of {name} is full ({what}): a new guest has more with `ramet run --rootfs ram:SIZE`,"
            " or on a disk with `--rootfs disk:SIZE`"
        )
    return (
        f"the root of {name} is full ({what}): `ramet disk resize {name} root SIZE` gives it more, and"
        " `ramet run --rootfs disk:SIZE` a new guest"
    )
