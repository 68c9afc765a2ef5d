"""Data disks as a user asks for them: `SIZE`, or `SIZE:PATH` for one with a filesystem, mounted at PATH.

Pure: what is asked for is checked against what a guest can have, and turned into the words that its kernel
passes on to the agent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import Final, NamedTuple

import msgspec

from ramet.errors import UsageError
from ramet.model.record import Disk
from ramet.units import MIB, TIB, format_bytes, parse_size

SMALLEST_DISK_BYTES: Final = MIB
SMALLEST_FILESYSTEM_BYTES: Final = 16 * MIB
LARGEST_DISK_BYTES: Final = 16 * TIB
MOST_DISKS: Final = 8
LONGEST_PATH_BYTES: Final = 128
"""Eight of them fit into a kernel's command line (COMMAND_LINE_SIZE is 2048) beside what else is there."""

_COMPONENT: Final = re.compile(r"[A-Za-z0-9._+@%~,-]+", re.ASCII)
_SYSTEM: Final = frozenset(
    {"/bin", "/etc", "/init", "/lib", "/run", "/sbin", "/usr", "/usr/bin", "/usr/sbin"}
)
"""Where a disk would hide what the guest is made of. Below them it may lie."""
_NOT_BELOW: Final = ("/dev", "/etc/ramet", "/lib/modules", "/proc", "/run/ramet", "/sys")
"""The kernel's own trees and the agent's."""


class NewDisk(NamedTuple):
    """One disk that is asked for. `path`: where the built-in image's guest has a filesystem on it mounted;
    None: it is a raw device.
    """

    size_bytes: int
    path: str | None = None


def parse_disk(text: str | int) -> NewDisk:
    """What `SIZE` or `SIZE:PATH` asks for; a plain number is bytes.

    Raises `UsageError` for a size that can't be and for a path at which no disk can be mounted.
    """
    if isinstance(text, int):
        size_bytes, path = text, None
    else:
        size, colon, place = text.partition(":")
        size_bytes = parse_size(size)
        path = check_mount_point(place) if colon else None
    smallest = SMALLEST_DISK_BYTES if path is None else SMALLEST_FILESYSTEM_BYTES
    if not smallest <= size_bytes <= LARGEST_DISK_BYTES or size_bytes % 512:
        what = "a disk" if path is None else "a disk with a filesystem"
        raise UsageError(
            f"{what} of {format_bytes(size_bytes)} can't be",
            hint=f"give it {smallest // MIB}M to 16T, in whole sectors of 512 bytes",
        )
    return NewDisk(size_bytes, path)


def parse_disks(texts: Iterable[str | int]) -> tuple[NewDisk, ...]:
    """All disks of one guest. Raises `UsageError` as `parse_disk`, for too many, and for two in one place."""
    disks = tuple(parse_disk(text) for text in texts)
    if len(disks) > MOST_DISKS:
        raise UsageError(f"{len(disks)} disks can't be", hint=f"give it {MOST_DISKS} at most")
    places = [disk.path for disk in disks if disk.path is not None]
    for place in places:
        if places.count(place) > 1:
            raise UsageError(f"two disks can't both be mounted at {place}", hint="give each its own path")
    return disks


def check_mount_point(path: str) -> str:
    """`path` in its one spelling. Raises `UsageError` when no disk can be mounted there.

    It goes through the kernel's command line, which has no escapes: what would need one is refused.
    """
    parts = path.strip("/").split("/")
    if not path.startswith("/") or parts == [""] or len(path.encode()) > LONGEST_PATH_BYTES:
        raise UsageError(
            f"no disk can be mounted at {path!r}",
            hint=f"give it an absolute path of up to {LONGEST_PATH_BYTES} bytes, as in 1G:/data",
        )
    if any(part in {".", ".."} or not _COMPONENT.fullmatch(part) for part in parts):
        raise UsageError(
            f"no disk can be mounted at {path!r}",
            hint="between its slashes a path has letters, digits and . _ + @ % ~ , -, and is no . or ..",
        )
    plain = f"/{'/'.join(parts)}"
    if plain in _SYSTEM or any(PurePosixPath(plain).is_relative_to(place) for place in _NOT_BELOW):
        raise UsageError(
            f"no disk can be mounted at {plain}: the guest itself is there",
            hint="choose another path, such as /data",
        )
    return plain


def mounted(disks: Sequence[Disk], wanted: Sequence[NewDisk]) -> tuple[Disk, ...]:
    """A machine's disks with the paths that were asked for."""
    if not wanted:
        return tuple(disks)
    return tuple(
        msgspec.structs.replace(disk, path=new.path) for disk, new in zip(disks, wanted, strict=True)
    )


def mount_arguments(disks: Sequence[Disk]) -> str:
    """The kernel arguments that tell a guest's agent which disk to mount where: `ramet.disk=N,SERIAL:PATH`.

    N counts the machine's disks from 0, for a VMM whose disks have no serial of ours. Sorted by path, so that
    what lies below another comes after it.
    """
    placed = sorted((disk.path, number, disk.name) for number, disk in enumerate(disks) if disk.path)
    return " ".join(f"ramet.disk={number},{name}:{path}" for path, number, name in placed)
