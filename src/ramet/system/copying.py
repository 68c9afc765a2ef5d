"""Copy file content: by reflink, in the kernel, or by reading; holes stay holes.

Sources: ioctl_ficlone(2), lseek(2) (SEEK_DATA, SEEK_HOLE), copy_file_range(2).
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal, NamedTuple

from ramet.errors import CannotReflinkError
from ramet.system.files import (
    STAT_BLOCK_BYTES,
    filesystem_errors,
    free_bytes,
    new_file,
    open_regular,
    write_all,
)
from ramet.system.forked import in_children
from ramet.units import MIB

_FICLONE: Final = 0x40049409  # _IOW(0x94, 9, int), linux/fs.h
_BUFFER_BYTES: Final = MIB
_copying = threading.Lock()
_OFFLOAD_BYTES: Final = 64 * MIB
_CANNOT_REFLINK: Final = {
    errno.EXDEV: "different filesystem",
    errno.EOPNOTSUPP: "the filesystem has no reflinks",
    errno.ENOTTY: "the filesystem has no reflinks",
    errno.ENOSYS: "the kernel has no reflinks",
    errno.EINVAL: "the filesystem refuses to reflink this file",
    errno.EPERM: "the filesystem refuses to reflink this file (immutable attribute)",
    errno.ETXTBSY: "the file is in use as swap",
}
_CANNOT_OFFLOAD: Final = frozenset(
    {errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.ETXTBSY, errno.EBADF}
)


class Duplicate(NamedTuple):
    """The way of a file's duplication: the mode, the reason for no better mode, the bytes copied."""

    mode: Literal["reflinked", "copied"]
    reason: str
    bytes_copied: int


def data_extents(descriptor: int, size_bytes: int | None = None) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of each range that isn't a hole, ascending.

    Ranges are those that the filesystem reports (lseek(2)). A filesystem that reports none, or can't, gives
    the whole file as one extent. Moves the descriptor's offset.
    """
    size = os.fstat(descriptor).st_size if size_bytes is None else size_bytes
    position = 0
    while position < size:
        try:
            start = os.lseek(descriptor, position, os.SEEK_DATA)
            end = min(os.lseek(descriptor, start, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise
            start, end = position, size
        if start >= size:
            return
        yield start, end
        position = end


def has_data(path: Path) -> bool:
    """Tell whether a file has anything but holes, as its filesystem reports them; True if it can't tell.

    Not by allocated blocks: filesystems that allocate late (ZFS) or keep small files elsewhere show none for
    what has just been written. Raises `OSError`.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return next(data_extents(descriptor), None) is not None
    finally:
        os.close(descriptor)


def reflink(source: Path, destination: Path) -> None:
    """Create `destination` with the blocks of `source`, mode 0600. Linux only (btrfs, XFS, bcachefs).

    Raises `CannotReflinkError` where these two can't, else `FilesystemError`; then there is no `destination`.
    """
    both = f"{source} to {destination}"
    with filesystem_errors("reflink", both), open_regular(source) as origin, new_file(destination) as copy:
        reflink_into(origin, copy)


def copy_sparse(source: Path, destination: Path) -> int:
    """Create `destination`, mode 0600, with the content and the holes of `source`; returns the bytes copied.

    Raises `FilesystemError`; then there is no `destination`, except where it existed before: that is left
    alone.
    """
    both = f"{source} to {destination}"
    with filesystem_errors("copy", both), open_regular(source) as origin, new_file(destination) as copy:
        return copy_extents(origin, copy)


def reflink_into(source: int, destination: int) -> None:
    """Make the empty file `destination` share all blocks of `source`: no bytes are copied (ioctl_ficlone(2)).

    Raises `CannotReflinkError` where these two files can't, `OSError` for anything else. `destination` is
    empty then.
    """
    if not sys.platform.startswith("linux"):
        raise CannotReflinkError("reflinks need Linux")
    try:
        fcntl.ioctl(destination, _FICLONE, source)
    except OSError as error:
        if (reason := _CANNOT_REFLINK.get(error.errno or 0)) is None:
            raise
        raise CannotReflinkError(reason) from error


def copy_extents(source: int, destination: int, *, offload: bool = True) -> int:
    """Copy data, and only data, into the empty file `destination`; holes stay holes, the size is kept.

    Returns the bytes copied. On one filesystem the copy's data takes no more blocks than the source's (ext4
    may count a block of its extent tree in). With `offload` the kernel copies (copy_file_range(2)), and a
    filesystem with reflinks may then share the blocks; without it they are the copy's own. Raises `OSError`;
    `destination` is incomplete then.
    """
    size = os.fstat(source).st_size
    # The whole size first: filesystems preallocate blocks behind a file that grows as it is written.
    os.ftruncate(destination, size)
    offload = offload and hasattr(os, "copy_file_range")
    buffer = memoryview(bytearray(min(_BUFFER_BYTES, size)))
    copied = 0
    for start, end in data_extents(source, size):
        position = start
        while offload and position < end:
            taken = _copy_in_kernel(source, destination, position, min(end - position, _OFFLOAD_BYTES))
            offload = taken > 0
            position += taken
        while position < end:
            taken = os.preadv(source, [buffer[: end - position]], position)
            if taken == 0:
                raise OSError(errno.EIO, "the file shrank while it was copied")
            write_all(destination, buffer[:taken], position)
            position += taken
        copied += end - start
    return copied


def _copy_in_kernel(source: int, destination: int, offset: int, length_bytes: int) -> int:
    """Copy by copy_file_range(2). Returns the number of bytes, 0 if reading and writing must do it."""
    try:
        return os.copy_file_range(source, destination, length_bytes, offset, offset)
    except OSError as error:
        if error.errno in _CANNOT_OFFLOAD:
            return 0
        raise


def duplicate_into(source: int, destination: int, *, allow_reflink: bool = True) -> Duplicate:
    """Fill the empty file `destination` from `source`: by reflink if possible, else by a sparse copy.

    Copies are made one after another: in parallel, on a disk with room for some of them, all would fail. A
    copy without room isn't begun, because it would fill the disk under all other VMMs first. Raises
    `OSError`; `destination` is incomplete then.
    """
    reason = "a reflink wasn't asked for"
    if allow_reflink:
        try:
            reflink_into(source, destination)
        except CannotReflinkError as error:
            reason = f"no reflink: {error.message}"
        else:
            return Duplicate("reflinked", "blocks are shared until one side writes", 0)
    with _copying:
        _require_room(source, destination)
        return Duplicate("copied", reason, copy_extents(source, destination, offload=allow_reflink))


def _require_room(source: int, destination: int) -> None:
    """Raise `OSError` (ENOSPC) when `destination` has no room for the data of `source`.

    Blocks alone don't decide: a filesystem may have reserved more than there is data.
    """
    free = free_bytes(destination)
    if free is None or free >= os.fstat(source).st_blocks * STAT_BLOCK_BYTES:
        return
    if free < sum(end - start for start, end in data_extents(source)):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _forget_copies() -> None:
    """Replace the lock in a forked child, where the copying threads would hold it for ever."""
    global _copying
    _copying = threading.Lock()


in_children(_forget_copies)
