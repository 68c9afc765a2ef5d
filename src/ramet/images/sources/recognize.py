"""Recognition of what a path or a stream is, by a bounded look at its content; names say nothing."""

from __future__ import annotations

import errno
import os
import re
import select
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from ramet.errors import DamagedError, FilesystemError, NotFoundError, UsageError
from ramet.images.layers.tar_entries import TarReader
from ramet.images.layers.tar_header import BLOCK_BYTES, parse_header
from ramet.images.layers.unpack import LayerStream
from ramet.images.library.records import Layer, Material
from ramet.images.sources.directory import Skipped, read_directory
from ramet.images.sources.docker_archive import MANIFEST, read_archive
from ramet.images.sources.files import ArchiveFiles, DirectoryFiles, Files
from ramet.images.sources.found import Found
from ramet.images.sources.oci_layout import INDEX, MARKER, read_layout
from ramet.images.sources.streams import is_compressed, pieces, unpacked, without_xz
from ramet.images.sources.tar_index import TarIndex
from ramet.model.container import ImageConfig
from ramet.oci.documents import Platform
from ramet.system import threads
from ramet.system.files import filesystem_errors, free_bytes, write_all
from ramet.text import visible
from ramet.units import KIB, MIB, format_bytes

UNDERSTOOD: Final = (
    "a directory with a root file system or an OCI layout; a tar archive (also compressed with gzip, zstd, xz"
    " or bzip2) of a root file system, of an OCI layout, or from docker save or podman save; docker:NAME;"
    " podman:NAME"
)
_READ_BYTES: Final = 1 * MIB
_WAIT_MS: Final = 200
_LOOK_BYTES: Final = 64 * KIB
_ARCHIVE_NAMES: Final = frozenset({b"blobs", b"index.json", b"manifest.json", b"oci-layout", b"repositories"})
_ARCHIVE_NAME: Final = re.compile(rb"[0-9a-f]{64}(?:\.json|\.tar)?")
_REPORTED_BYTES: Final = 16 * MIB


class Importer:
    """A place to keep files of an import that can't be read from where they are, and what is asked for.

    `scratch` is a directory for temporary files without names; `close` frees them. Its functions block.
    """

    def __init__(self, scratch: Path, *, ref: str | None, platform: Platform, skipped: Skipped) -> None:
        self._scratch = scratch
        self._ref = ref
        self._platform = platform
        self._skipped = skipped
        self._files = ExitStack()

    def close(self) -> None:
        """Close what the layers of the found images are read from."""
        self._files.close()

    def find(self, path: Path, label: str) -> Found:
        """Return the image in a file or a directory. `label` names it in errors.

        Raises `UsageError` for something that isn't understood; `DamagedError`, `NotFoundError`,
        `FilesystemError`.
        """
        try:
            with filesystem_errors("read", label):
                # A FIFO to which nobody writes yet is opened, and `_pipe` waits for its other end.
                descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FilesystemError as error:
            if error.number in (errno.ENOENT, errno.ENOTDIR):
                raise NotFoundError(f"there is no {label}", hint=f"ramet imports {UNDERSTOOD}") from error
            raise
        self._files.callback(os.close, descriptor)
        with filesystem_errors("read", label):
            kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
        if kind == stat.S_IFDIR:
            return self._directory(path, label)
        if kind == stat.S_IFREG:
            return self._file(descriptor, label)
        return self.stream(descriptor, label)

    def stream(self, descriptor: int, label: str) -> Found:
        """Return the image that comes through a pipe, which is read once, or from a file that it stands for.

        Raises as `find`, and `UsageError` for a terminal.
        """
        if os.isatty(descriptor):
            raise UsageError(
                f"{label} is a terminal", hint="give a file, or pipe an archive into the command"
            )
        with filesystem_errors("read", label):
            if stat.S_ISREG(os.fstat(descriptor).st_mode) and os.lseek(descriptor, 0, os.SEEK_CUR) == 0:
                return self._file(descriptor, label)
        with _naming(label):
            chunks = unpacked(_pipe(descriptor, label))
            head, whole = pieces(chunks, _LOOK_BYTES)
            if not _is_tar(head):
                raise _not_understood(label)
            if not _may_be_archive(head):
                return _root(label, Once(whole, label))
            return self._spooled(whole, label)

    def _directory(self, path: Path, label: str) -> Found:
        files = DirectoryFiles(path)
        with filesystem_errors("read", label):
            names = set(os.listdir(path))  # noqa: PTH208 - names
        if not names:
            raise UsageError(f"{label} is an empty directory", hint=f"ramet imports {UNDERSTOOD}")
        if {MARKER, INDEX} <= names:
            return read_layout(files, label=label, ref=self._ref, platform=self._platform)
        self._require_no_ref(label)
        return _root(label, lambda: read_directory(path, self._skipped))

    def _file(self, descriptor: int, label: str) -> Found:
        with _naming(label), filesystem_errors("read", label):
            facts = os.fstat(descriptor)
            start = os.pread(descriptor, _LOOK_BYTES, 0)
            head, whole = pieces(unpacked(_file_chunks(descriptor, facts, label)), _LOOK_BYTES)
            if not _is_tar(head):
                raise _not_understood(label)
            if _may_be_archive(head):
                if is_compressed(start):
                    return self._spooled(whole, label)
                return self._archive(descriptor, label)
        self._require_no_ref(label)
        return _root(label, lambda: without_xz(_file_chunks(descriptor, facts, label)), facts.st_size)

    def _spooled(self, chunks: Iterator[bytes], label: str) -> Found:
        with filesystem_errors("write a temporary file in", self._scratch):
            file = self._files.enter_context(tempfile.TemporaryFile(dir=self._scratch))  # noqa: SIM115
        offset = reported = 0
        for chunk in chunks:
            threads.check_cancelled()
            with filesystem_errors("write a temporary file in", self._scratch):
                write_all(file.fileno(), chunk, offset)
            offset += len(chunk)
            if offset - reported >= _REPORTED_BYTES:
                reported = offset
                self._require_room(label)
        return self._archive(file.fileno(), label)

    def _require_room(self, label: str) -> None:
        """Stop before the disk is full to its last byte: a bomb must not take it from others."""
        free = free_bytes(self._scratch)
        if free is not None and free < _REPORTED_BYTES:
            raise FilesystemError(
                f"can't unpack {label} in {self._scratch}: only {format_bytes(free)} are free",
                hint="free some space on that filesystem",
            )

    def _archive(self, descriptor: int, label: str) -> Found:
        with filesystem_errors("read", label):
            files = ArchiveFiles(TarIndex(descriptor), label)
            facts = os.fstat(descriptor)
        if (found := self._image_in(files, label)) is not None:
            return found
        self._require_no_ref(label)
        return _root(label, lambda: _file_chunks(descriptor, facts, label), facts.st_size)

    def _image_in(self, files: Files, label: str) -> Found | None:
        if files.size(MARKER) is not None and files.size(INDEX) is not None:
            return read_layout(files, label=label, ref=self._ref, platform=self._platform)
        if files.size(MANIFEST) is not None:
            return read_archive(files, label=label, ref=self._ref, platform=self._platform)
        return None

    def _require_no_ref(self, label: str) -> None:
        if self._ref is not None:
            raise UsageError(
                f"{label} is a root file system, and has no image {self._ref!r} to choose",
                hint="leave the tag out; a name for the image is given by itself",
            )


class Once:
    """A stream that can be read a single time, for a layer's `open`."""

    def __init__(self, chunks: Iterator[bytes], label: str) -> None:
        self._chunks: Iterator[bytes] | None = chunks
        self._label = label

    def __call__(self) -> Iterator[bytes]:
        """Return the stream. Raises `FilesystemError` the second time."""
        if self._chunks is None:
            raise FilesystemError(f"{self._label} can't be read again", hint="run the import again")
        chunks, self._chunks = self._chunks, None
        return chunks


def _root(label: str, opener: object, size_bytes: int = 0) -> Found:
    """Return the image of a root file system: a layer, and a configuration that says nothing."""
    layer = Layer(label, None, opener, size_bytes)  # type: ignore[arg-type]
    return Found(Material(ImageConfig(), [layer], None, label), "")


def _is_tar(head: bytes) -> bool:
    if len(head) < BLOCK_BYTES or not head[:BLOCK_BYTES].strip(b"\0"):
        return False
    try:
        parse_header(head[:BLOCK_BYTES])
    except DamagedError:
        return False
    return True


def _may_be_archive(head: bytes) -> bool:
    """Tell by its first name whether an archive may be one of images. Few roots have such a name."""
    try:
        for entry in TarReader(LayerStream([head])):
            parts = [part for part in entry.name.split(b"/") if part not in (b"", b".")]
            if parts:
                return parts[0] in _ARCHIVE_NAMES or bool(_ARCHIVE_NAME.fullmatch(parts[0]))
    except DamagedError:
        pass  # cut off here, or damaged: its reader says so
    return False


def _file_chunks(descriptor: int, facts: os.stat_result, label: str) -> Iterator[bytes]:
    """Yield a file's content from its beginning. Raises `FilesystemError`, also if it has changed."""
    offset = 0
    with filesystem_errors("read", label):
        while piece := os.pread(descriptor, _READ_BYTES, offset):
            yield piece
            offset += len(piece)
        now = os.fstat(descriptor)
    if (now.st_size, now.st_mtime_ns) != (facts.st_size, facts.st_mtime_ns) or offset != facts.st_size:
        raise FilesystemError(f"{label} changed while it was read", hint="run the import again")


def _pipe(descriptor: int, label: str) -> Iterator[bytes]:
    """Yield what comes through a pipe. A cancellation ends the wait for its other end."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    with filesystem_errors("read", label):
        while True:
            while not poll.poll(_WAIT_MS):
                threads.check_cancelled()
            try:
                piece = os.read(descriptor, _READ_BYTES)
            except BlockingIOError:  # another process was quicker
                continue
            if not piece:
                return
            yield piece


@contextmanager
def _naming(label: str) -> Iterator[None]:
    """Name the source of bytes in what their readers raise."""
    try:
        yield
    except DamagedError as error:
        if error.message.startswith(label) or label in error.message:
            raise
        raise DamagedError(f"{label} is damaged: {error.message}", hint=error.hint) from error


def _not_understood(label: str) -> UsageError:
    return UsageError(
        f"{visible(label)} is nothing that ramet can import", hint=f"ramet imports {UNDERSTOOD}"
    )
