"""What the filesystem does for us: reflinks, holes, and changes that are either wholly there or not at all.

Knows files, not VMs. Runs on any POSIX system; what only Linux has (reflinks, punching holes, copying inside
the kernel) steps down with a reason elsewhere. Functions on descriptors raise `OSError`, functions on paths
raise `FilesystemError`, which names the path.

Sources: ioctl_ficlone(2), lseek(2) (SEEK_DATA, SEEK_HOLE), copy_file_range(2), fallocate(2), fsync(2),
rename(2), renameat2(2).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import secrets
import shutil
import stat
import sys
import threading
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal, NamedTuple

from ramet.errors import CannotReflinkError, FilesystemError
from ramet.host import rlimits
from ramet.host.forked import in_children
from ramet.host.libc import last_error, libc
from ramet.units import MIB

TEMPORARY_PREFIX: Final = ".tmp-"
"""How the name of anything unpublished begins. Such names are swept after a crash and never cloned."""
STAT_BLOCK_BYTES: Final = 512
"""The unit of `st_blocks`, whatever the filesystem's own block is (stat(2))."""

_FICLONE: Final = 0x40049409  # _IOW(0x94, 9, int), linux/fs.h
_FS_IOC_GETFLAGS: Final = 0x80086601  # _IOR('f', 1, long), linux/fs.h
_FS_IOC_SETFLAGS: Final = 0x40086602  # _IOW('f', 2, long)
_FS_IMMUTABLE_FL: Final = 0x10
_FS_TOPDIR_FL: Final = 0x20000
_FS_NOCOW_FL: Final = 0x800000
_AT_FDCWD: Final = -100  # fcntl.h
_RENAME_NOREPLACE: Final = 1  # linux/fs.h
_RENAME_EXCHANGE: Final = 2
_NO_SUCH_RENAME: Final = frozenset({errno.EINVAL, errno.ENOSYS})  # this filesystem, this kernel
_PUNCH_HOLE_KEEP_SIZE: Final = 0x03  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, linux/falloc.h
_KEEP_SIZE: Final = 0x01  # FALLOC_FL_KEEP_SIZE
_BUFFER_BYTES: Final = MIB
_REMOVAL_TRIES: Final = 5
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
_HINTS: Final = {
    errno.ENOSPC: "free some space on that filesystem",
    errno.EDQUOT: "free some of the quota on that filesystem",
    errno.EFBIG: "ask for less: that filesystem has no files so large",  # unless a limit is why
    errno.EROFS: "choose a directory on a writable filesystem",
    errno.EACCES: "check who owns the file and the directories above it",
    errno.EMFILE: "raise the limit on open files: ulimit -n",
}


class Duplicate(NamedTuple):
    """How one file's content came into another: the mode, why not a better one, and what was copied."""

    mode: Literal["reflinked", "copied"]
    reason: str
    bytes_copied: int


def hint_of(error: OSError) -> str | None:
    """The next step after an error of a filesystem, where there is one."""
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
    """A descriptor of a file that didn't exist before. Leaving with an exception removes the file again."""
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
    """A read-only descriptor of a regular file.

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
    """What the file occupies, in bytes; a hole occupies nothing, a reflinked block counts in every file.

    Raises `OSError`.
    """
    return path.lstat().st_blocks * STAT_BLOCK_BYTES


def data_extents(descriptor: int, size_bytes: int | None = None) -> Iterator[tuple[int, int]]:
    """(start, end) of each range that isn't a hole, ascending, as the filesystem reports them (lseek(2)).

    A filesystem that reports none, or can't, gives the whole file as one extent. Moves the descriptor's
    offset.
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
    """Whether a file has anything but holes, as its filesystem reports them; True where it can't tell.

    Not by allocated blocks: filesystems that allocate late (ZFS) or keep small files elsewhere show none for
    what has just been written. Raises `OSError`.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return next(data_extents(descriptor), None) is not None
    finally:
        os.close(descriptor)


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
    """Bytes that copy_file_range(2) copied; 0 where reading and writing must do it instead."""
    try:
        return os.copy_file_range(source, destination, length_bytes, offset, offset)
    except OSError as error:
        if error.errno in _CANNOT_OFFLOAD:
            return 0
        raise


def duplicate_into(source: int, destination: int, *, allow_reflink: bool = True) -> Duplicate:
    """Fill the empty file `destination` from `source`: by reflink where possible, else by a sparse copy.

    Copies are made one after another: side by side on a disk with room for some of them, all would fail. One
    that there is no room for isn't begun: it would fill the disk under everybody else's VMM first. Raises
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


def _forget_copies() -> None:
    """The threads that copy aren't there in a child, and would hold the lock for ever."""
    global _copying
    _copying = threading.Lock()


in_children(_forget_copies)


def _require_room(source: int, destination: int) -> None:
    """Raises `OSError` (ENOSPC) when `destination` has no room for what `source` holds.

    Blocks alone don't say that: a filesystem may have reserved more than there is data.
    """
    free = free_bytes(destination)
    if free is None or free >= os.fstat(source).st_blocks * STAT_BLOCK_BYTES:
        return
    if free < sum(end - start for start, end in data_extents(source)):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def free_bytes(where: int | Path) -> int | None:
    """How much this process may still write to the filesystem of a file or a directory, in bytes; None where
    the filesystem doesn't tell.

    An estimate: others write too, and a filesystem that compresses may need less. Raises `OSError`.
    """
    facts = os.statvfs(where)
    free = facts.f_bfree if os.geteuid() == 0 else facts.f_bavail
    # Some filesystems in user space tell nothing: no blocks at all.
    return free * facts.f_frsize if facts.f_blocks else None


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


def write_all(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Write every byte of `data` at `offset`, however many calls that takes. Raises `OSError`."""
    done = os.pwrite(descriptor, data, offset)
    while done < len(data):
        done += os.pwrite(descriptor, memoryview(data)[done:], offset + done)


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
    """Set blocks aside behind the end of a file, so that so much can be appended on a full disk, too. Its
    length stays. Nothing happens where that can't be done.
    """
    if sys.platform.startswith("linux"):
        end, length = ctypes.c_int64(os.fstat(descriptor).st_size), ctypes.c_int64(length_bytes)
        libc().fallocate(descriptor, _KEEP_SIZE, end, length)


def turn_off_copy_on_write(descriptor: int) -> None:
    """Let an *empty* file be written in place, where the filesystem would put each write elsewhere (btrfs): a
    block that is there can be written then though the disk is full (ioctl_iflags(2), FS_NOCOW_FL).
    """
    try:
        flags = array("l", [0])
        fcntl.ioctl(descriptor, _FS_IOC_GETFLAGS, flags)
        flags[0] |= _FS_NOCOW_FL
        fcntl.ioctl(descriptor, _FS_IOC_SETFLAGS, flags)
    except OSError:
        pass  # the others write in place anyway


def is_immutable(path: Path) -> bool:
    """Whether a file has the immutable attribute, by which nobody, root included, may write, link or remove
    it (FS_IOC_GETFLAGS, ioctl_iflags(2)). False where that can't be asked.
    """
    try:
        with open_regular(path) as descriptor:
            flags = array("l", [0])
            fcntl.ioctl(descriptor, _FS_IOC_GETFLAGS, flags)
            return bool(flags[0] & _FS_IMMUTABLE_FL)
    except OSError:
        return False


def spread(directory: Path) -> None:
    """Let directories that are made in this one lie apart on the medium, as the tops of unrelated hierarchies
    (the attribute `T` of chattr(1)), where the filesystem knows that.

    ext4 gives a new file no inode that was given back in the last minutes, and looks at each of those, in
    order, in the part of the disk that its directory is in: where instances come and go, that takes 0.5 to
    0.8 ms a file; apart, 0.01 ms (measured on Linux 6.18). Nothing happens where it can't be set.
    """
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            flags = array("l", [0])
            fcntl.ioctl(descriptor, _FS_IOC_GETFLAGS, flags)
            if not flags[0] & _FS_TOPDIR_FL:
                flags[0] |= _FS_TOPDIR_FL
                fcntl.ioctl(descriptor, _FS_IOC_SETFLAGS, flags)
        finally:
            os.close(descriptor)
    except OSError:
        pass  # tmpfs, XFS: their inodes cost little


def sync(descriptor: int) -> None:
    """Wait until the file's content is on the medium. Raises `OSError`.

    fsync(2) does that; on macOS it doesn't, F_FULLFSYNC does.
    """
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is None:
        os.fsync(descriptor)
    else:
        fcntl.fcntl(descriptor, full)


def sync_filesystem(directory: Path) -> None:
    """Write out all of the filesystem that a directory is on (syncfs(2)): what was freed can be had then.

    Raises `FilesystemError`.
    """
    with filesystem_errors("sync the filesystem of", directory):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if libc().syncfs(descriptor) != 0:
                raise last_error()
        finally:
            os.close(descriptor)


def fsync_directory(path: Path) -> None:
    """Make the names in a directory durable: what was created, renamed or removed in it.

    Raises `FilesystemError`.
    """
    with filesystem_errors("sync", path):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        except OSError as error:
            # Some network filesystems make names durable at once and refuse to be asked.
            if error.errno != errno.EINVAL:
                raise
        finally:
            os.close(descriptor)


def temporary_beside(path: Path) -> Path:
    """A fresh, unused name in the same directory, from which `publish` can rename to `path`."""
    return path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{secrets.token_hex(4)}")


def publish(temporary: Path, final: Path) -> None:
    """Give a finished file, or a directory of files, its name: sync it, rename it, sync the parent (I2).

    A file that had the name loses it and is otherwise untouched: who has it mapped, open or linked doesn't
    notice (I1). A directory can only replace an empty one. Links and sockets inside a directory have no
    content to sync. Raises `FilesystemError`: `final` is then as it was and `temporary` is left to the
    caller, unless syncing the parent was what failed: then `final` is new and whole but may not survive a
    crash.
    """
    with filesystem_errors("publish", final):
        _sync_tree(temporary)
        temporary.replace(final)
    fsync_directory(final.parent)


def _sync_tree(path: Path) -> None:
    kind = path.lstat().st_mode
    if stat.S_ISDIR(kind):
        for entry in path.iterdir():
            _sync_tree(entry)
        fsync_directory(path)
    elif stat.S_ISREG(kind):
        with open_regular(path) as descriptor:
            sync(descriptor)


def write_durably(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Write or replace a small file so that a crash leaves the old content or the new, never a mixture.

    Raises `FilesystemError`; the old content is in place then and nothing is left beside it.
    """
    temporary = temporary_beside(path)
    try:
        with filesystem_errors("write", path), new_file(temporary, mode) as descriptor:
            write_all(descriptor, data, 0)
        publish(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_tree(directory: Path) -> None:
    """Remove a directory and all that is in it, if it is there; others may be removing it, too, and the
    home's worker may be making a file in it.

    Raises `FilesystemError` for the first thing that can't be removed: everything else is gone then.
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
                hint=f"`chattr -i {left}` as root; whichever ramet command comes next removes what is left",
                number=error.errno,
            ) from error
    if errors:
        left, error = errors[0]
        with filesystem_errors("remove", left):
            raise error


def rename_new(old: Path, new: Path) -> None:
    """Rename, but never over something that is there (renameat2(2), RENAME_NOREPLACE).

    Raises `OSError`, `FileExistsError` among them; both are as they were then.
    """
    here = ctypes.c_int(_AT_FDCWD)
    if libc().renameat2(here, os.fsencode(old), here, os.fsencode(new), _RENAME_NOREPLACE) == 0:
        return
    if (error := last_error()).errno not in _NO_SUCH_RENAME:
        raise error
    os.link(old, new)
    old.unlink()


def exchange(one: Path, other: Path) -> None:
    """Let two directories change names, at once: nobody ever finds either name missing (renameat2(2),
    RENAME_EXCHANGE). Processes that work in them go with them.

    Durable when this returns. Raises `FilesystemError`: nothing has changed then, unless syncing was what
    failed.
    """
    with filesystem_errors("exchange", f"{one} and {other}"):
        here = ctypes.c_int(_AT_FDCWD)
        if libc().renameat2(here, os.fsencode(one), here, os.fsencode(other), _RENAME_EXCHANGE) != 0:
            raise last_error()
    fsync_directory(one.parent)
    if other.parent != one.parent:
        fsync_directory(other.parent)
