"""Data disks: made, frozen with their instance, forked.

A raw disk is duplicated: by reflink if the filesystem has reflinks, else by a copy that keeps holes. A qcow2
disk isn't duplicated: its frozen file, of any size, is hard-linked and becomes the backing file of a new,
empty one. The result names the way of each disk (I4).
"""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal, NamedTuple

import msgspec

from ramet.disk.chains import backing_of, image_facts
from ramet.disk.filesystem import make_ext4
from ramet.disk.qcow2 import fill_qcow2, make_qcow2
from ramet.model.record import Disk
from ramet.system.copying import duplicate_into
from ramet.system.files import TEMPORARY_PREFIX, filesystem_errors, lengthen, new_file, open_regular
from ramet.system.publishing import rename_new, temporary_beside
from ramet.system.share import ASKED_FOR, Shared, link_or_copy

_SYNC_ROUNDS: Final = 3
_SHORT_SYNC_S: Final = 0.010
_LINKED = "hard link: the frozen disk is the backing file of a new one"
_REFLINKS_HELP: Final = "; a home on XFS or Btrfs shares its blocks instead"
_IDENTITIES: Final = uuid.UUID("5b1c6e0e-52a7-4a0e-9f0a-1d3f6a8c7e21")
_MODES: Final = ("shared", "reflinked", "copied")


class ForkedDisk(NamedTuple):
    """A fork's disk, and how it came by it."""

    disk: Disk
    mode: Literal["shared", "reflinked", "copied"]
    reason: str
    bytes_copied: int


def with_capture(forked: ForkedDisk, captured: Shared | None) -> ForkedDisk:
    """Combine the ways in which a fork got a disk when its running source was captured for it first.

    The result has the worse way of capture and fork, and the bytes that both copied.
    """
    if captured is None:
        return forked
    copied = captured.bytes_copied + forked.bytes_copied
    if _MODES.index(captured.mode) > _MODES.index(forked.mode):
        return ForkedDisk(forked.disk, captured.mode, f"in the capture: {captured.reason}", copied)
    too = " (in the capture, too)" if captured.mode == forked.mode else ""
    return forked._replace(reason=forked.reason + too, bytes_copied=copied)


def make_disk(directory: Path, disk: Disk) -> None:
    """Make a new disk in `directory`: it occupies next to nothing until it is written to.

    One with a path has a filesystem on it, whose UUID comes of the directory's and the disk's name. Raises
    `FilesystemError`, and `UnavailableError` when this machine can't make filesystems; there is no file then.
    """
    path = directory / disk.file
    if disk.path is not None:
        _make_with_filesystem(path, disk, uuid.uuid5(_IDENTITIES, f"{directory.name}/{disk.name}"))
    elif disk.format == "qcow2":
        make_qcow2(path, disk.size_bytes)
    else:
        with filesystem_errors("make", path), new_file(path) as descriptor:
            os.ftruncate(descriptor, disk.size_bytes)


def _make_with_filesystem(path: Path, disk: Disk, identity: uuid.UUID) -> None:
    if disk.format == "raw":
        make_ext4(path, disk.size_bytes, identity)
        return
    raw = temporary_beside(path)
    try:
        make_ext4(raw, disk.size_bytes, identity)
        with filesystem_errors("read", raw), open_regular(raw) as descriptor:
            fill_qcow2(path, disk.size_bytes, descriptor)
    finally:
        raw.unlink(missing_ok=True)


def files_of(disk: Disk) -> tuple[str, ...]:
    """List the names of all files that make up a disk, the lowest first."""
    return (*disk.backing, disk.file)


def next_overlay(disk: Disk, *directories: Path) -> Disk:
    """Describe the disk whose file, still to be made, lies over the frozen `disk`: `disk-<N>.qcow2`.

    N is above every number in the chain and in `directories`: files that a failed operation left keep their
    names. Raises `FilesystemError` when a directory can't be read.
    """
    numbered = _numbered(disk)
    names = set(files_of(disk))
    for directory in directories:
        with filesystem_errors("read", directory):
            names.update(entry.name for entry in directory.iterdir())
    numbers = [int(match[1]) for name in names if (match := numbered.fullmatch(name))]
    top = f"{disk.name}-{max(numbers, default=0) + 1}.qcow2"
    return msgspec.structs.replace(disk, file=top, backing=files_of(disk))


def make_overlay(directory: Path, disk: Disk) -> None:
    """Make the empty file of a disk that `next_overlay` gave, over its backing files in `directory`.

    The file gets its name only when it is complete, so a process that dies here leaves nothing that could be
    taken for a disk's uppermost file. Raises `FilesystemError`; there is no file then.
    """
    made = directory / f"{TEMPORARY_PREFIX}{disk.file}"
    with filesystem_errors("make", directory / disk.file):
        made.unlink(missing_ok=True)
        make_qcow2(made, disk.size_bytes, backing=disk.backing[-1])
        try:
            rename_new(made, directory / disk.file)
        except BaseException:
            made.unlink(missing_ok=True)
            raise


def snapshot_raw(source: Path, destination: Path, *, share: bool = True, mode: int = 0o600) -> Shared:
    """Make `destination`, a separate file with the content of the raw disk `source`, which nobody writes.

    By reflink, else by a copy that keeps holes; `share=False` copies outright. The result names the way, and
    the reason. Not synced. Raises `FilesystemError`; there is no `destination` then.
    """
    with (
        filesystem_errors("duplicate", f"{source} as {destination}"),
        open_regular(source) as origin,
        new_file(destination) as copy,
    ):
        made = duplicate_into(origin, copy, allow_reflink=share)
        os.fchmod(copy, mode)
    if not share:
        return Shared(made.mode, ASKED_FOR, made.bytes_copied)
    help_ = _REFLINKS_HELP if made.mode == "copied" else ""
    return Shared(made.mode, f"a raw disk can't be linked: {made.reason}{help_}", made.bytes_copied)


def link_frozen(source: Path, destination: Path, disk: Disk, *, share: bool = True) -> Shared:
    """Give the directory `destination` the frozen files of a qcow2 disk in `source`, under the same names.

    By hard links; a file that can't be linked is reflinked or copied, and the result is the worst way of all
    files. Raises `FilesystemError`; the files made until then can't be used.
    """
    given = [link_or_copy(source / name, destination / name, share_memory=share) for name in files_of(disk)]
    worst = max(given, key=lambda part: _MODES.index(part.mode))
    return Shared(worst.mode, worst.reason, sum(part.bytes_copied for part in given))


def uppermost(directory: Path, disk: Disk) -> Disk:
    """Return `disk`, or the disk whose overlay lies over it in its directory.

    A capture may have made an overlay and died before the overlay was recorded. An unused overlay has the
    content of the file under it, so the uppermost file is always right.

    Raises `FilesystemError`, `DamagedError` when an overlay can't be read.
    """
    numbered = _numbered(disk)
    with filesystem_errors("read", directory):
        names = [entry.name for entry in directory.iterdir()]
    while disk.format == "qcow2":
        over = [
            name for name in names if numbered.fullmatch(name) and backing_of(directory / name) == disk.file
        ]
        if not over:
            break
        latest = max(over, key=lambda name: (directory / name).stat().st_mtime_ns)
        disk = msgspec.structs.replace(disk, file=latest, backing=files_of(disk))
        disk = msgspec.structs.replace(disk, size_bytes=max(disk.size_bytes, size_of(directory, disk)))
        names.remove(latest)
    return disk


def _numbered(disk: Disk) -> re.Pattern[str]:
    return re.compile(rf"{re.escape(disk.name)}-(\d{{1,9}})\.qcow2", re.ASCII)


def size_of(directory: Path, disk: Disk) -> int:
    """Return the size of a disk as its uppermost file has it, in bytes: a guest sees that.

    A record may have an older size. Raises `FilesystemError`, `DamagedError`.
    """
    path = directory / disk.file
    if disk.format == "qcow2":
        return image_facts(path).size_bytes
    with filesystem_errors("look at", path), open_regular(path) as descriptor:
        return os.fstat(descriptor).st_size


def grow_disk(directory: Path, disk: Disk, size_bytes: int) -> Disk:
    """Make a disk that no VMM has open larger. A filesystem on it isn't changed.

    A qcow2 disk gets an overlay of the new size, a raw disk a hole at its end, after a copy of a file that is
    shared. Raises `FilesystemError`; the disk may have another file then, with the same content.
    """
    disk = uppermost(directory, disk)
    wanted = msgspec.structs.replace(disk, size_bytes=size_bytes)
    if disk.format == "qcow2":
        new = next_overlay(wanted, directory)
        make_overlay(directory, new)
        return new
    path = directory / disk.file
    if path.stat().st_nlink > 1:
        unshare_disk(directory, disk)
    with filesystem_errors("resize", path):
        lengthen(path, size_bytes)
    return wanted


def unshare_disk(directory: Path, disk: Disk) -> Disk:
    """Make a writable disk in place of a disk whose file is shared.

    The new disk is an overlay over the old, or a copy in its place. Raises `FilesystemError`; the disk is
    unchanged then.
    """
    if disk.format == "qcow2":
        new = next_overlay(disk, directory)
        make_overlay(directory, new)
        return new
    path = directory / disk.file
    temporary = temporary_beside(path)
    snapshot_raw(path, temporary)
    with filesystem_errors("replace", path):
        temporary.replace(path)
    return disk


def sync_disks(directory: Path, disks: Sequence[Disk]) -> None:
    """Write the host's cached data of the disks' writable files to storage.

    Call it right before a pause: a VMM flushes its disks when its guest is paused, and waits for all data
    since the last flush (93 ms after 1.5 GB). After this call the VMM waits only for later data, so a second
    round follows a long round. Blocks its thread, which shouldn't be an event loop's. Raises
    `FilesystemError`.
    """
    for disk in disks:
        path = directory / disk.file
        with filesystem_errors("sync", path), open_regular(path) as descriptor:
            for _ in range(_SYNC_ROUNDS):
                begun = time.monotonic()
                os.fdatasync(descriptor)
                if time.monotonic() - begun < _SHORT_SYNC_S:
                    break


def fork_disk(source: Path, destination: Path, disk: Disk, *, share: bool = True) -> ForkedDisk:
    """Give the directory `destination` a disk that begins as the frozen `disk` in `source`.

    Later writes go to a separate file. `share=False` copies outright. Raises `FilesystemError`; the files
    made until then can't be used.
    """
    if disk.format == "raw":
        made = snapshot_raw(source / disk.file, destination / disk.file, share=share)
        return ForkedDisk(disk, made.mode, made.reason, made.bytes_copied)
    given = link_frozen(source, destination, disk, share=share)
    forked = next_overlay(disk, destination)
    make_overlay(destination, forked)
    reason = _LINKED if given.mode == "shared" else given.reason
    return ForkedDisk(forked, given.mode, reason, given.bytes_copied)
