"""Clone an instance's directory: the files that a fork has for itself, beside the shared files.

Every name is looked up relative to an open directory and never through a symbolic link, so nothing that
changes the tree meanwhile can lead the walk out of it. What belongs to a running process and not to the disk
is left out: sockets, FIFOs, devices, logs, locks, pid files, temporaries.

Ownership, extended attributes and access lists aren't kept: a clone belongs to the user who makes it.

Source: openat(2), "Rationale for openat()"; O_NOFOLLOW in open(2).
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path, PurePath, PurePosixPath
from typing import Final, Literal

import msgspec

from ramet.errors import UsageError
from ramet.system.copying import duplicate_into
from ramet.system.files import TEMPORARY_PREFIX, filesystem_errors

LEFT_OUT: Final = ("*.sock", "*.log", "*.log.1", "*.lock", "*.tmp", "*.pid", f"{TEMPORARY_PREFIX}*")
"""Names, of files and of directories, that are never cloned."""

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Not to wait for a writer, should a FIFO have taken the file's place since it was looked at.
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW_FILE: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_SET_ID: Final = stat.S_ISUID | stat.S_ISGID


class ClonedFile(msgspec.Struct, frozen=True):
    """A regular file of the clone: the way that its content was made, and the reason for no better way."""

    path: str
    """Relative to the clone, with `/`."""
    mode: Literal["reflinked", "copied"]
    reason: str
    size_bytes: int
    bytes_copied: int


class _Directory(msgspec.Struct, frozen=True):
    """A directory of the clone whose mode and times are set when nothing more is put into it."""

    path: str
    facts: os.stat_result


def clone_directory(
    source: Path,
    destination: Path,
    *,
    skip_rel_paths: Collection[str | PurePath] = frozenset(),
    leave_out: Callable[[str], bool] = lambda name: False,
    allow_reflink: bool = True,
    into: bool = False,
) -> list[ClonedFile]:
    """Create `destination` with the content of `source`, except what is skipped. Returns a result per file.

    Files are reflinked or sparsely copied, hard links become separate files, symbolic links are copied as
    links and never followed. Permissions and modification times (ns) are kept, of files, directories and
    links; set-id bits only if the owner stays the same. `skip_rel_paths` are files or whole directories,
    relative to `source`: they are neither walked nor opened nor looked at. Nor is any name for which
    `leave_out` returns true, anywhere in the tree, also a name that appears during the walk.

    `into` means that the directory exists and has none of those names. Nothing is synced. Raises `UsageError`
    when a path to skip leads out of the tree or `destination` is inside `source`, and `FilesystemError`,
    which names the file; then `destination` is removed, unless it existed before.
    """
    skipped = frozenset(_relative(path) for path in skip_rel_paths)
    if destination.parent != source.parent and destination.resolve().is_relative_to(source.resolve()):
        raise UsageError(f"{destination} is inside {source}, of which it is to be a clone")
    if not into:
        with filesystem_errors("create", destination):
            destination.mkdir(mode=0o700)
    try:
        walk = _Walk(source, destination, skipped, leave_out, allow_reflink)
        with filesystem_errors("clone", source), _opened(source) as origin, _opened(destination) as copy:
            walk.directory(origin, copy, "")
        walk.finish()
    except BaseException:
        if not into:
            shutil.rmtree(destination, ignore_errors=True)
        raise
    return walk.cloned


class _Walk:
    """A clone under way.

    Paths are for messages and results; files are opened by name in an open directory.
    """

    def __init__(
        self,
        source: Path,
        destination: Path,
        skipped: Collection[str],
        leave_out: Callable[[str], bool],
        allow_reflink: bool,
    ) -> None:
        self.source = source
        self.destination = destination
        self.skipped = skipped
        self.leave_out = leave_out
        self.allow_reflink = allow_reflink
        self.cloned: list[ClonedFile] = []
        self.directories: list[_Directory] = []

    def directory(self, origin: int, copy: int, path: str) -> None:
        """Clone the content of the open directory `origin` into the open directory `copy`."""
        self.directories.append(_Directory(path, os.fstat(origin)))
        for name in sorted(os.listdir(origin)):
            below = f"{path}/{name}" if path else name
            if below in self.skipped or self.leave_out(name) or _is_left_out(name):
                continue
            with filesystem_errors("clone", self.source / below):
                self._entry(origin, copy, name, below)

    def finish(self) -> None:
        """Set the directories' modes and times. Last of all: a mode may forbid, an entry changes the time."""
        for made in reversed(self.directories):
            place = self.destination / made.path
            with filesystem_errors("finish", place):
                place.chmod(_mode(made.facts))
                os.utime(place, ns=(made.facts.st_atime_ns, made.facts.st_mtime_ns))

    def _entry(self, origin: int, copy: int, name: str, path: str) -> None:
        facts = os.stat(name, dir_fd=origin, follow_symlinks=False)
        if stat.S_ISDIR(facts.st_mode):
            os.mkdir(name, mode=0o700, dir_fd=copy)
            with _opened(name, origin) as inner, _opened(name, copy) as inner_copy:
                self.directory(inner, inner_copy, path)
        elif stat.S_ISREG(facts.st_mode):
            self._file(origin, copy, name, path)
        elif stat.S_ISLNK(facts.st_mode):
            os.symlink(os.readlink(name, dir_fd=origin), name, dir_fd=copy)
            os.utime(name, ns=(facts.st_atime_ns, facts.st_mtime_ns), dir_fd=copy, follow_symlinks=False)

    def _file(self, origin: int, copy: int, name: str, path: str) -> None:
        with _opened(name, origin, _FILE) as old, _opened(name, copy, _NEW_FILE) as new:
            facts = os.fstat(old)
            if not stat.S_ISREG(facts.st_mode):
                raise OSError(errno.ESTALE, "it was replaced while it was cloned")
            made = duplicate_into(old, new, allow_reflink=self.allow_reflink)
            os.fchmod(new, _mode(facts))
            os.utime(new, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        self.cloned.append(ClonedFile(path, made.mode, made.reason, facts.st_size, made.bytes_copied))


def _is_left_out(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in LEFT_OUT)


@contextmanager
def _opened(name: str | Path, directory: int | None = None, flags: int = _DIRECTORY) -> Iterator[int]:
    descriptor = os.open(name, flags, mode=0o600, dir_fd=directory)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _mode(facts: os.stat_result) -> int:
    # A clone belongs to its maker: a program that ran as its owner must not begin to run as somebody else.
    mode = stat.S_IMODE(facts.st_mode)
    return mode if facts.st_uid == os.geteuid() else mode & ~_SET_ID


def _relative(path: str | PurePath) -> str:
    """Normalize a path to skip.

    Raises `UsageError` for a path that is empty, absolute or leads upwards.
    """
    pure = PurePosixPath(path)
    if not pure.parts or pure.is_absolute() or ".." in pure.parts:
        raise UsageError(f"{str(path)!r} isn't a path inside the directory that is cloned")
    return str(pure)
