"""A directory of this machine as a layer: its tar archive, made while it is read.

The walk follows no link and holds one descriptor: downwards it opens a name of the directory it is in,
upwards it compares `..` with the directory that it came from. A file or directory that changes meanwhile is
an error. Other filesystems that are mounted inside aren't entered. Sources: openat(2), lseek(2) (SEEK_DATA),
proc_pid_fdinfo(5) (`mnt_id`), acl(5).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ramet.errors import FilesystemError, UnavailableError
from ramet.images.layers.limits import DEFAULT_LIMITS
from ramet.images.layers.merge import is_marker
from ramet.images.layers.sparse import Extents
from ramet.images.layers.tar_entries import HARD_LINK, TarEntry
from ramet.images.sources.tar_writer import END, encode_header, padding
from ramet.system.files import STAT_BLOCK_BYTES, hint_of
from ramet.text import visible
from ramet.units import MIB

_READ_BYTES: Final = 1 * MIB
_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CHANGED: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE, errno.ENODATA})
"""Errors of a name that was there a moment ago."""
_REFUSED: Final = frozenset({errno.EACCES, errno.EPERM})
_KINDS: Final = frozenset(
    {stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO}
)


@dataclass(slots=True)
class Skipped:
    """Counts of what a directory has and an image hasn't."""

    sockets: int = 0
    """Sockets: they mean something only to the process that listens."""
    mounts: int = 0
    """Mount points: a directory is there, empty; a file isn't."""


@dataclass(slots=True)
class _Frame:
    """A directory on the way down."""

    name: bytes
    """Its path, empty for the root."""
    facts: os.stat_result
    names: list[bytes]
    """Names that are still to come, the next one last."""


def read_directory(directory: Path, skipped: Skipped) -> Iterator[bytes]:
    """Yield the tar archive of a directory's content, and count into `skipped` what isn't in it.

    Names come in the order of their bytes: the same content gives the same bytes. Raises `FilesystemError`,
    which names the file, for what can't be read and for what changes while it is read;
    `UnavailableError` for what no image can have.
    """
    skipped.sockets = skipped.mounts = 0
    walk = _Walk(directory, skipped)
    try:
        yield from walk.run()
    finally:
        walk.close()


class _Walk:
    def __init__(self, directory: Path, skipped: Skipped) -> None:
        self._directory = directory
        self._skipped = skipped
        self._links: dict[tuple[int, int], bytes] = {}
        """The first name of each file that has several."""
        with self._errors(b""):
            self._here = os.open(directory, _FLAGS & ~os.O_NOFOLLOW | os.O_DIRECTORY)
        self._mount = _mount_of(self._here)

    def close(self) -> None:
        os.close(self._here)

    def run(self) -> Iterator[bytes]:
        stack: list[_Frame] = []
        with self._errors(b""):
            facts = os.fstat(self._here)
            yield encode_header(_entry(b".", facts, self._xattrs(b"", self._here)))
            stack.append(_Frame(b"", facts, _names(self._here)))
        while stack:
            frame = stack[-1]
            if frame.names:
                name = frame.names.pop()
                path = frame.name + b"/" + name if frame.name else name
                with self._errors(path):
                    found = yield from self._one(path, name)
                if found is not None:
                    stack.append(found)
                continue
            with self._errors(frame.name):
                self._require_same(frame.name, frame.facts, os.fstat(self._here))
            stack.pop()
            if stack:
                self._go_up(stack[-1])
        yield END

    def _one(self, path: bytes, name: bytes) -> Generator[bytes, None, _Frame | None]:
        """Yield a file's part of the archive. Returns the frame of a directory that was entered."""
        if is_marker(name):
            raise UnavailableError(
                f"{self._shown(path)} has a name that says in an image that something is deleted",
                hint="rename it, or import a directory without it",
            )
        facts = os.stat(name, dir_fd=self._here, follow_symlinks=False)
        kind = stat.S_IFMT(facts.st_mode)
        if kind not in _KINDS:
            self._skipped.sockets += 1
            return None
        if kind == stat.S_IFDIR:
            return (yield from self._enter(path, name, facts))
        if facts.st_nlink > 1:
            key = (facts.st_dev, facts.st_ino)
            if (first := self._links.setdefault(key, path)) != path:
                yield encode_header(_entry(path, facts, {}, file_type=HARD_LINK, link=first))
                return None
        if kind == stat.S_IFREG:
            yield from self._file(path, name, facts)
            return None
        place = f"/proc/self/fd/{self._here}/".encode() + name
        link = os.readlink(name, dir_fd=self._here) if kind == stat.S_IFLNK else b""
        yield encode_header(_entry(path, facts, self._xattrs(path, place), link=link))
        return None

    def _enter(
        self, path: bytes, name: bytes, facts: os.stat_result
    ) -> Generator[bytes, None, _Frame | None]:
        below = os.open(name, _FLAGS | os.O_DIRECTORY, dir_fd=self._here)
        try:
            opened = os.fstat(below)
            self._require_file(path, facts, opened)
            yield encode_header(_entry(path, opened, self._xattrs(path, below)))
            if _mount_of(below) != self._mount:
                self._skipped.mounts += 1
                return None
            names = _names(below)
            self._here, below = below, self._here
        finally:
            os.close(below)
        return _Frame(path, opened, names)

    def _go_up(self, frame: _Frame) -> None:
        with self._errors(frame.name):
            above = os.open(b"..", _FLAGS | os.O_DIRECTORY, dir_fd=self._here)
            os.close(self._here)
            self._here = above
            self._require_file(frame.name, frame.facts, os.fstat(above))

    def _file(self, path: bytes, name: bytes, facts: os.stat_result) -> Iterator[bytes]:
        descriptor = os.open(name, _FLAGS, dir_fd=self._here)
        try:
            before = os.fstat(descriptor)
            self._require_file(path, facts, before)
            if before.st_dev != self._device and _mount_of(descriptor) != self._mount:
                self._skipped.mounts += 1
                return
            size = before.st_size
            extents = _extents(descriptor, before)
            yield encode_header(_entry(path, before, self._xattrs(path, descriptor)), extents)
            stored = 0
            for offset, length in [(0, size)] if extents is None else extents:
                end = offset + length
                while offset < end:
                    if not (piece := os.pread(descriptor, min(end - offset, _READ_BYTES), offset)):
                        raise self._changed(path)
                    yield piece
                    offset += len(piece)
                stored += length
            yield padding(stored)
            self._require_same(path, before, os.fstat(descriptor))
        finally:
            os.close(descriptor)

    def _xattrs(self, path: bytes, place: int | bytes) -> dict[bytes, bytes]:
        """Return all attributes of an open file, or of a name whose last component isn't followed."""
        follows = isinstance(place, int)
        try:
            names = os.listxattr(place, follow_symlinks=follows)
        except OSError as error:
            if error.errno == errno.ENOTSUP:
                return {}
            raise
        found: dict[bytes, bytes] = {}
        for name in names:
            if "=" in name:
                raise UnavailableError(
                    f"{self._shown(path)} has an extended attribute with the name {visible(name)}, which no"
                    " archive of a layer can have",
                    hint="import a copy of the directory without that attribute",
                )
            found[os.fsencode(name)] = os.getxattr(place, name, follow_symlinks=follows)
        return found

    @property
    def _device(self) -> int:
        return os.fstat(self._here).st_dev

    def _require_file(self, path: bytes, expected: os.stat_result, actual: os.stat_result) -> None:
        """Raise unless both are the same file."""
        if not os.path.samestat(expected, actual) or stat.S_IFMT(expected.st_mode) != stat.S_IFMT(
            actual.st_mode
        ):
            raise self._changed(path)

    def _require_same(self, path: bytes, before: os.stat_result, after: os.stat_result) -> None:
        """Raise if a file's content or attributes have changed."""
        if (before.st_size, before.st_mtime_ns, before.st_ctime_ns) != (
            after.st_size,
            after.st_mtime_ns,
            after.st_ctime_ns,
        ):
            raise self._changed(path)

    def _changed(self, path: bytes) -> FilesystemError:
        return FilesystemError(
            f"{self._shown(path)} changed while it was read",
            hint="import a directory to which nothing writes: a copy, or a read-only snapshot",
        )

    def _shown(self, path: bytes) -> str:
        return visible(str(self._directory / os.fsdecode(path)))

    @contextmanager
    def _errors(self, path: bytes) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if path and error.errno in _CHANGED:
                raise self._changed(path) from error
            hint = hint_of(error)
            if error.errno in _REFUSED:
                hint = "import the directory as a user who may read all of it, as root for instance"
            raise FilesystemError(
                f"can't read {self._shown(path)}: {error.strerror}", hint=hint, number=error.errno
            ) from error


def _names(descriptor: int) -> list[bytes]:
    return sorted(map(os.fsencode, os.listdir(descriptor)), reverse=True)


def _entry(
    name: bytes,
    facts: os.stat_result,
    xattrs: dict[bytes, bytes],
    *,
    file_type: int | None = None,
    link: bytes = b"",
) -> TarEntry:
    kind = stat.S_IFMT(facts.st_mode) if file_type is None else file_type
    is_device = kind in (stat.S_IFCHR, stat.S_IFBLK)
    return TarEntry(
        name=name,
        file_type=kind,
        permissions=stat.S_IMODE(facts.st_mode),
        uid=facts.st_uid,
        gid=facts.st_gid,
        mtime=divmod(facts.st_mtime_ns, 10**9),
        link=link,
        device=(os.major(facts.st_rdev), os.minor(facts.st_rdev)) if is_device else (0, 0),
        size_bytes=facts.st_size if kind == stat.S_IFREG else 0,
        xattrs=xattrs,
    )


def _extents(descriptor: int, facts: os.stat_result) -> Extents | None:
    """Return where a file has data; None if it has no holes, or too many to keep them."""
    if facts.st_blocks * STAT_BLOCK_BYTES >= facts.st_size:
        return None
    extents: Extents = []
    offset, size = 0, facts.st_size
    while offset < size:
        try:
            start = os.lseek(descriptor, offset, os.SEEK_DATA)
            offset = min(os.lseek(descriptor, start, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break  # nothing but a hole follows
            if error.errno == errno.EINVAL:
                return None  # this filesystem doesn't tell
            raise
        extents.append((start, offset - start))
        if len(extents) > DEFAULT_LIMITS.sparse_extents:
            return None
    return None if extents == [(0, size)] else extents


def _mount_of(descriptor: int) -> int:
    """Return the number of the mount that an open file was reached by."""
    info = os.open(f"/proc/self/fdinfo/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        fields = dict(line.split(b":", 1) for line in os.read(info, 4096).splitlines() if b":" in line)
    finally:
        os.close(info)
    return int(fields[b"mnt_id"])
