"""Data disks as users write them: `SIZE`, or `SIZE:PATH` for a disk with a filesystem mounted at PATH.

Pure functions: they check the disks that a user wants, and write them as kernel arguments for the agent.
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
"""Eight such paths fit into a kernel's command line (COMMAND_LINE_SIZE is 2048) with the other arguments."""

_COMPONENT: Final = re.compile(r"[A-Za-z0-9._+@%~,-]+", re.ASCII)
_SYSTEM: Final = frozenset(
    {"/bin", "/etc", "/init", "/lib", "/run", "/sbin", "/usr", "/usr/bin", "/usr/sbin"}
)
"""Directories that a disk would hide and that the guest needs. A path below them is allowed."""
_NOT_BELOW: Final = ("/dev", "/etc/ramet", "/lib/modules", "/proc", "/run/ramet", "/sys")
"""The kernel's own trees and the agent's."""


class NewDisk(NamedTuple):
    """A disk that a user wants.

    The guest of the built-in image mounts its filesystem at `path`; None stands for a raw device.
    """

    size_bytes: int
    path: str | None = None


def parse_disk(text: str | int) -> NewDisk:
    """Parse `SIZE` or `SIZE:PATH`; a plain number is bytes.

    Raises `UsageError` for an impossible size, and for a path at which no disk can be mounted.
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
    """Parse all disks of a guest.

    Raises `UsageError` as `parse_disk`, for too many disks, and for two at the same path.
    """
    disks = tuple(parse_disk(text) for text in texts)
    if len(disks) > MOST_DISKS:
        raise UsageError(f"{len(disks)} disks can't be", hint=f"give it {MOST_DISKS} at most")
    places = [disk.path for disk in disks if disk.path is not None]
    for place in places:
        if places.count(place) > 1:
            raise UsageError(f"two disks can't both be mounted at {place}", hint="give each its own path")
    return disks


def check_mount_point(path: str) -> str:
    """Return `path` in its normal spelling. Raises `UsageError` when no disk can be mounted there.

    The path goes through the kernel's command line, which has no escapes: characters that need one are
    refused.
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
    """Return a machine's disks with the paths that the user wants."""
    if not wanted:
        return tuple(disks)
    return tuple(
        msgspec.structs.replace(disk, path=new.path) for disk, new in zip(disks, wanted, strict=True)
    )


def mount_arguments(disks: Sequence[Disk]) -> str:
    """Return the kernel arguments that tell the agent which disk to mount where: `ramet.disk=N,SERIAL:PATH`.

    N counts the machine's disks from 0, for a VMM whose disks have no serial. The arguments are sorted by
    path, so a mount point below another one comes after it.
    """
    placed = sorted((disk.path, number, disk.name) for number, disk in enumerate(disks) if disk.path)
    return " ".join(f"ramet.disk={number},{name}:{path}" for path, number, name in placed)
