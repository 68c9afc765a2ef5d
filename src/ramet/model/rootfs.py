"""The place for what a container image's guest writes to its root, as users name it."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from ramet.errors import UsageError
from ramet.model.disks import LARGEST_DISK_BYTES
from ramet.units import GIB, MIB, format_bytes, parse_size

DEFAULT_ROOT_BYTES: Final = 10 * GIB
"""The size of a root disk; its file has what was written."""
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
