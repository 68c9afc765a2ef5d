"""Data disks: made empty, frozen with their instance, forked.

A raw disk is duplicated: by reflink where the filesystem can, else by a copy that keeps holes. A qcow2 disk
isn't: the frozen file is hard-linked and becomes the backing file of a new, empty one, whatever was written
to it (I4 says of each which it was).
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal, NamedTuple

import msgspec

from ramet.disk.qcow2 import make_qcow2
from ramet.host.files import duplicate_into, filesystem_errors, new_file, open_regular
from ramet.host.share import ASKED_FOR, Shared, share_file
from ramet.model.record import Disk

_ROUNDS: Final = 3
_SHORT_S: Final = 0.010
_LINKED = "hard link: the frozen disk is the backing file of a new one"


class ForkedDisk(NamedTuple):
    """A fork's disk, and how it came by it."""

    disk: Disk
    mode: Literal["shared", "reflinked", "copied"]
    reason: str
    bytes_copied: int


def make_disk(directory: Path, disk: Disk) -> None:
    """Make an empty disk in `directory`: it occupies next to nothing until it is written to.

    Raises `FilesystemError`; there is no file then.
    """
    path = directory / disk.file
    if disk.format == "qcow2":
        make_qcow2(path, disk.size_bytes)
        return
    with filesystem_errors("make", path), new_file(path) as descriptor:
        os.ftruncate(descriptor, disk.size_bytes)


def files_of(disk: Disk) -> tuple[str, ...]:
    """The names of all files that make up a disk, the lowest first."""
    return (*disk.backing, disk.file)


def settle(directory: Path, disks: Sequence[Disk]) -> None:
    """Have the host write out what lies in its cache of the files that the disks write to.

    For right before a pause: a VMM flushes its disks when its guest stops, and waits for all that has come
    together since the last time (93 ms after 1.5 GB). Done here, what is left for it is what came
    meanwhile; so a second round follows a long one. Blocks its thread, which shouldn't be an event loop's.
    Raises `FilesystemError`.
    """
    for disk in disks:
        path = directory / disk.file
        with filesystem_errors("sync", path), open_regular(path) as descriptor:
            for _ in range(_ROUNDS):
                begun = time.monotonic()
                os.fdatasync(descriptor)
                if time.monotonic() - begun < _SHORT_S:
                    break


def fork_disk(source: Path, destination: Path, disk: Disk, *, share: bool = True) -> ForkedDisk:
    """Give the directory `destination` a disk that begins as the frozen `disk` in `source`.

    What is written to it afterwards goes to a file of its own. `share=False` copies outright. Raises
    `FilesystemError`; what is there of the disk then is of no use.
    """
    if disk.format == "raw":
        made = _duplicate(source / disk.file, destination / disk.file, share=share)
        return ForkedDisk(disk, made.mode, made.reason, made.bytes_copied)
    given = [share_file(source / name, destination / name, share_memory=share) for name in files_of(disk)]
    worst = max(given, key=lambda one: _MODES.index(one.mode))
    reason = _LINKED if worst.mode == "shared" else worst.reason
    top = f"{disk.name}-{len(disk.backing) + 1}.qcow2"
    make_qcow2(destination / top, disk.size_bytes, backing=disk.file)
    forked = msgspec.structs.replace(disk, file=top, backing=files_of(disk))
    return ForkedDisk(forked, worst.mode, reason, sum(one.bytes_copied for one in given))


_MODES = ("shared", "reflinked", "copied")


def _duplicate(source: Path, destination: Path, *, share: bool) -> Shared:
    """A file of its own with the same content, writable."""
    with (
        filesystem_errors("duplicate", f"{source} as {destination}"),
        open_regular(source) as origin,
        new_file(destination) as copy,
    ):
        made = duplicate_into(origin, copy, allow_reflink=share)
    reason = f"a raw disk can't be linked: {made.reason}" if share else ASKED_FOR
    return Shared(made.mode, reason, made.bytes_copied)
