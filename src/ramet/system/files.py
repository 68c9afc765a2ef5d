"""Files as this filesystem has them: opened and made safely, holes, room, attributes, removal.

`copying` copies their content, `publishing` makes them appear whole. In all three, functions on descriptors
raise `OSError`, functions on paths raise `FilesystemError`, which names the path. They know files, not VMs.

Sources: fallocate(2), ioctl_iflags(2), statvfs(3), openat(2).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import stat
import sys
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ramet.errors import FilesystemError
from ramet.system import rlimits
from ramet.system.libc import last_error, libc

TEMPORARY_PREFIX: Final = ".tmp-"
"""Prefix of all unpublished names. They are deleted after a crash and never cloned."""
STAT_BLOCK_BYTES: Final = 512
"""The unit of `st_blocks` on every filesystem (stat(2))."""

FS_IOC_GETFLAGS: Final = 0x80086601  # _IOR('f', 1, long), linux/fs.h
FS_IOC_SETFLAGS: Final = 0x40086602  # _IOW('f', 2, long)
_FS_IMMUTABLE_FL: Final = 0x10
_FS_NOCOW_FL: Final = 0x800000
_PUNCH_HOLE_KEEP_SIZE: Final = 0x03  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, linux/falloc.h
_KEEP_SIZE: Final = 0x01  # FALLOC_FL_KEEP_SIZE
_REMOVAL_TRIES: Final = 5

_HINTS: Final = {
    errno.ENOSPC: "free some space on that filesystem",
    errno.EDQUOT: "free some of the quota on that filesystem",
    errno.EFBIG: "ask for less: that filesystem has no files so large",  # unless a limit is why
    errno.EROFS: "choose a directory on a writable filesystem",
    errno.EACCES: "check who owns the file and the directories above it",
    errno.EMFILE: "raise the limit on open files: ulimit -n",
}


def hint_of(error: OSError) -> str | None:
    """Return the next step after a filesystem's error, if there is one."""
    hint = _HINTS.get(error.errno or 0)
    return rlimits.file_hint() or hint if error.errno == errno.EFBIG else hint


@contextmanager
def filesystem_errors(action: str, path: Path | str) -> Iterator[None]:
    """Turn an `OSError` inside into a `FilesystemError` that names the action, the path and the reason."""
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        raise FilesystemError(
            f"can't {action} {path}: {why}", hint=hint_of(error), number=error.errno
        ) from error


@contextmanager
def new_file(path: Path, mode: int = 0o600) -> Iterator[int]:
    """Yield a descriptor of a file that didn't exist before. An exception in the block removes the file."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        yield descriptor
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


@contextmanager
def open_regular(path: Path) -> Iterator[int]:
    """Yield a read-only descriptor of a regular file.

    A link is refused; so is a FIFO, without waiting for its writer.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        yield descriptor
    finally:
        os.close(descriptor)


def allocated_bytes(path: Path) -> int:
    """Return the bytes that the file occupies; holes occupy none, a reflinked block counts in every file.

    Raises `OSError`.
    """
    return path.lstat().st_blocks * STAT_BLOCK_BYTES


def free_bytes(where: int | Path) -> int | None:
    """Return the bytes that this process may still write to a filesystem; None if it doesn't tell.

    `where` is a file or a directory of the filesystem. The number is an estimate: others write too, and a
    filesystem that compresses may need less. Raises `OSError`.
    """
    facts = os.statvfs(where)
    free = facts.f_bfree if os.geteuid() == 0 else facts.f_bavail
    # Some filesystems in user space tell nothing: no blocks at all.
    return free * facts.f_frsize if facts.f_blocks else None


def write_all(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Write every byte of `data` at `offset`, however many calls that takes. Raises `OSError`."""
    done = os.pwrite(descriptor, data, offset)
    while done < len(data):
        done += os.pwrite(descriptor, memoryview(data)[done:], offset + done)


def lengthen(path: Path, size_bytes: int) -> None:
    """Make a regular file `size_bytes` long, by a hole at its end; a file of that length stays as it is.

    The length is durable at the return. Raises `OSError`, also for a link, for a file that has a second name
    (a published file is never written), and for one that is longer.
    """
    flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags)
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        if facts.st_nlink != 1:
            raise OSError(errno.EINVAL, "other names share it")
        if facts.st_size > size_bytes:
            raise OSError(errno.EINVAL, "it is longer already")
        os.ftruncate(descriptor, size_bytes)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def punch_hole(descriptor: int, offset: int, length_bytes: int) -> bool:
    """Make a range read as zeros and, block by block, occupy nothing. Never call it on a published file.

    False, with nothing changed, where the system or the filesystem can't (fallocate(2), Linux). Raises
    `OSError`.
    """
    if not sys.platform.startswith("linux"):
        return False
    position, length = ctypes.c_int64(offset), ctypes.c_int64(length_bytes)
    if libc().fallocate(descriptor, _PUNCH_HOLE_KEEP_SIZE, position, length) == 0:
        return True
    error = last_error()
    if error.errno in (errno.EOPNOTSUPP, errno.ENOSYS):
        return False
    raise error


def allocate(descriptor: int, length_bytes: int) -> None:
    """Give a file all the blocks of that length, and the length itself if it is shorter; its content stays.

    Nothing happens where the filesystem can't (fallocate(2)). Raises `OSError`, such as ENOSPC.
    """
    if not sys.platform.startswith("linux"):
        return
    if libc().fallocate(descriptor, 0, ctypes.c_int64(0), ctypes.c_int64(length_bytes)) != 0:
        error = last_error()
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
            raise error


def keep_room(descriptor: int, length_bytes: int) -> None:
    """Reserve blocks behind the end of a file, so that `length_bytes` can be appended on a full disk, too.

    The file's length stays. Does nothing if that isn't possible.
    """
    if sys.platform.startswith("linux"):
        end, length = ctypes.c_int64(os.fstat(descriptor).st_size), ctypes.c_int64(length_bytes)
        libc().fallocate(descriptor, _KEEP_SIZE, end, length)


def turn_off_copy_on_write(descriptor: int) -> None:
    """Have an *empty* file written in place on a filesystem that puts each write elsewhere (btrfs).

    An existing block can be written then even if the disk is full (ioctl_iflags(2), FS_NOCOW_FL).
    """
    try:
        flags = array("l", [0])
        fcntl.ioctl(descriptor, FS_IOC_GETFLAGS, flags)
        flags[0] |= _FS_NOCOW_FL
        fcntl.ioctl(descriptor, FS_IOC_SETFLAGS, flags)
    except OSError:
        pass  # the others write in place anyway


def is_immutable(path: Path) -> bool:
    """Tell whether a file is immutable: nobody, root included, may write, link or remove it.

    False if the attribute can't be read (FS_IOC_GETFLAGS, ioctl_iflags(2)).
    """
    try:
        with open_regular(path) as descriptor:
            flags = array("l", [0])
            fcntl.ioctl(descriptor, FS_IOC_GETFLAGS, flags)
            return bool(flags[0] & _FS_IMMUTABLE_FL)
    except OSError:
        return False


def remove_tree(directory: Path) -> None:
    """Remove a directory with its content, if it exists.

    Others may remove it at the same time, and the home's worker may make a file in it. Raises
    `FilesystemError` for the first entry that can't be removed: everything else is gone then.
    """
    errors: list[tuple[Path, OSError]] = []

    def note(_function: object, path: str, info: tuple[object, BaseException, object]) -> None:
        error = info[1]
        if not isinstance(error, OSError):
            raise error
        if not isinstance(error, FileNotFoundError):
            errors.append((Path(path), error))

    for _ in range(_REMOVAL_TRIES):
        errors.clear()
        shutil.rmtree(directory, onerror=note)
        if not any(error.errno == errno.ENOTEMPTY for _, error in errors):
            break
    for left, error in errors:
        if is_immutable(left):
            raise FilesystemError(
                f"{left} can't be removed: it has the immutable attribute",
                hint=f"`chattr -i {left}` as root; the next ramet command removes what is left",
                number=error.errno,
            ) from error
    if errors:
        left, error = errors[0]
        with filesystem_errors("remove", left):
            raise error
