"""The files of a layout or an archive, looked up by the names in its documents. Nothing leads out."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

from ramet.errors import DamagedError
from ramet.images.sources.tar_index import TarIndex
from ramet.system.files import filesystem_errors
from ramet.text import visible
from ramet.units import MIB

_READ_BYTES: Final = 1 * MIB
_MOST_SHOWN: Final = 200


class Files(Protocol):
    """Files by name, such as `blobs/sha256/…`."""

    def size(self, name: str) -> int | None:
        """Return the length of a file, None if there is no such file."""

    def chunks(self, name: str) -> Iterator[bytes]:
        """Yield a file's content."""


class ArchiveFiles:
    """The files of a tar archive that is an open file."""

    def __init__(self, index: TarIndex, label: str) -> None:
        self._index = index
        self._label = label

    def size(self, name: str) -> int | None:
        """Return the length of a file, None if there is no such file. Raises `DamagedError`."""
        with self._errors():
            return self._index.size(name)

    def chunks(self, name: str) -> Iterator[bytes]:
        """Yield a file's content. Raises `DamagedError`, `FilesystemError`."""
        with self._errors():
            yield from self._index.chunks(name)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            with filesystem_errors("read", self._label):
                yield
        except DamagedError as error:
            raise DamagedError(f"{self._label} is damaged: {error.message}") from error


class DirectoryFiles:
    """The files below a directory. Links are followed as long as they stay inside."""

    def __init__(self, root: Path) -> None:
        self._root = root
        with filesystem_errors("read", root):
            self._real = os.fsencode(os.path.realpath(root))

    def size(self, name: str) -> int | None:
        """Return the length of a file, None if there is none. Raises `DamagedError`, `FilesystemError`."""
        with filesystem_errors("read", self._root / name):
            try:
                descriptor = self._open(name)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
                    return None
                raise
            try:
                return os.fstat(descriptor).st_size
            finally:
                os.close(descriptor)

    def chunks(self, name: str) -> Iterator[bytes]:
        """Yield a file's content. Raises `DamagedError`, `FilesystemError`."""
        with filesystem_errors("read", self._root / name):
            descriptor = self._open(name)
            try:
                while piece := os.read(descriptor, _READ_BYTES):
                    yield piece
            finally:
                os.close(descriptor)

    def _open(self, name: str) -> int:
        """Open a file after a look at where it is: nothing outside is opened, no device and no FIFO."""
        place = os.open(self._root / name, os.O_PATH | os.O_CLOEXEC)
        try:
            real = os.readlink(f"/proc/self/fd/{place}".encode())  # noqa: PTH115 - bytes
            if not real.startswith(self._real.rstrip(b"/") + b"/"):
                raise DamagedError(f"{self._root / name} is a link that leads out of {self._root}")
            if not stat.S_ISREG(os.fstat(place).st_mode):
                raise DamagedError(f"{self._root / name} is no regular file")
            return os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(place)


def read_document(files: Files, name: str, *, label: str, most_bytes: int) -> bytes:
    """Return a small file's content. `label` names layout or archive in errors. Raises `DamagedError`."""
    size = files.size(name)
    if size is None:
        raise DamagedError(f"{label} has no {_shown(name)}, which it should have")
    if size > most_bytes:
        raise DamagedError(f"the {_shown(name)} of {label} has {size} bytes; up to {most_bytes} are allowed")
    content = bytearray()
    for piece in files.chunks(name):
        content += piece
        if len(content) > most_bytes:
            raise DamagedError(f"the {_shown(name)} of {label} is larger than it was")
    return bytes(content)


def checked_chunks(
    files: Files, name: str, *, digest: str, size_bytes: int, label: str
) -> Callable[[], Iterator[bytes]]:
    """Return a function that yields a file's content each time, compared with digest and size at its end.

    Raises `DamagedError` at once for a file that is missing or of another length.
    """
    found = files.size(name)
    if found is None:
        raise DamagedError(f"{label} has no {_shown(name)}, which it should have")
    if found != size_bytes:
        raise DamagedError(f"the {_shown(name)} of {label} has {found} bytes instead of {size_bytes}")
    algorithm = digest.partition(":")[0]

    def chunks() -> Iterator[bytes]:
        hasher = hashlib.new(algorithm)
        for piece in files.chunks(name):
            hasher.update(piece)
            yield piece
        if f"{algorithm}:{hasher.hexdigest()}" != digest:
            raise DamagedError(f"{_shown(name)} isn't what its digest {digest} names")

    return chunks


def _shown(name: str) -> str:
    return visible(name[:_MOST_SHOWN])
