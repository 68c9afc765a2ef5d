"""Contents of a layer's regular files, spooled once: pages of large files, and small files packed.

The pages depend on the layer alone: each file of more than one block begins at one, in the archive's order,
holes stay holes. So the pages are at the same time the blob that images share (`ramet.images.erofs`), and
images that have the layer in common have the same blob.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from typing import Final

from ramet.errors import DamagedError
from ramet.images.layers.limits import FILE_BLOCK_BYTES
from ramet.images.layers.tree import Extent
from ramet.system.files import punch_hole, write_all
from ramet.units import KIB, MIB

BLOCK_BYTES: Final = FILE_BLOCK_BYTES
"""Files of more than one block are large."""
_BUFFER_BYTES: Final = 1 * MIB
_FREED_BYTES: Final = 256 * KIB
"""Pages that are freed at once, if they are neighbours."""
_ZEROS: Final = bytes(64 * KIB)


class LayerContents:
    """A layer's spool: two files, which the caller opens, closes and deletes. Raises `OSError`.

    With `pages` None they exist already, as the layer's blob: they are placed, and neither written nor
    hashed. `blob` is that blob, open for reading, if the image has to have them in its own file.
    """

    def __init__(self, layer: int, *, pages: int | None, small: int, blob: int | None = None) -> None:
        self.layer = layer
        self._pages = pages
        self._small = small
        self._blob = blob
        self._frees = False
        self._read_range = (0, 0)
        self._pages_bytes = 0
        self._small_bytes = 0
        self._buffer = bytearray()
        self._digest = hashlib.sha256()

    @classmethod
    def kept(cls, layer: int, *, blob: int, blocks: int, small: int) -> LayerContents:
        """Return the contents of a layer that was spooled before, into files that are open for reading."""
        contents = cls(layer, pages=None, small=small, blob=blob)
        contents._pages_bytes = blocks * BLOCK_BYTES
        return contents

    @property
    def blocks(self) -> int:
        """Length of the pages so far, in blocks."""
        return self._pages_bytes // BLOCK_BYTES

    @property
    def digest(self) -> str:
        """The digest of the pages so far: `sha256:` and 64 digits."""
        return f"sha256:{self._digest.hexdigest()}"

    def store(self, size_bytes: int, pieces: Iterable[tuple[int, memoryview]]) -> Extent | None:
        """Take a file's contents: (offset, bytes) ascending, zeros between them. None for an empty file."""
        if size_bytes == 0:
            return None
        if size_bytes > BLOCK_BYTES:
            return self._store_pages(size_bytes, pieces)
        contents = bytearray(size_bytes)
        for offset, piece in pieces:
            contents[offset : offset + len(piece)] = piece
        extent = Extent(self.layer, False, self._small_bytes, size_bytes)
        self._small_bytes += size_bytes
        self._buffer += contents
        if len(self._buffer) >= _BUFFER_BYTES:
            self._flush()
        return extent

    def finish(self) -> None:
        """Write what is still in memory; the files have their full lengths then."""
        self._flush()
        if self._pages is not None:
            os.ftruncate(self._pages, self._pages_bytes)

    def free_what_is_read(self) -> None:
        """Free the pages of each file when they have been read: they are read once from now on."""
        self._frees = self._pages is not None

    def read(self, extent: Extent) -> Iterator[bytes]:
        """Yield a file's contents. Raises `DamagedError` if the spool is shorter than it was."""
        pages = self._blob if self._pages is None else self._pages
        descriptor = pages if extent.is_paged else self._small
        assert descriptor is not None
        offset, end = extent.offset_bytes, extent.offset_bytes + extent.size_bytes
        while offset < end:
            if not (piece := os.pread(descriptor, min(end - offset, _BUFFER_BYTES), offset)):
                raise DamagedError("a layer's spool was cut while it was read")
            yield piece
            offset += len(piece)
        if self._frees and extent.is_paged:
            self._free(extent.offset_bytes, end + -end % BLOCK_BYTES)

    def _free(self, start: int, end: int) -> None:
        """Free pages, neighbours at once: an image's order is mostly the archive's."""
        if start != self._read_range[1]:
            self._punch()
            self._read_range = (start, start)
        self._read_range = (self._read_range[0], end)
        if end - self._read_range[0] >= _FREED_BYTES or end == self._pages_bytes:
            self._punch()

    def _punch(self) -> None:
        first, last = self._read_range
        self._read_range = (last, last)
        assert self._pages is not None
        if last > first and not punch_hole(self._pages, first, last - first):
            self._frees = False  # this filesystem can't: they stay until the build ends

    def _store_pages(self, size_bytes: int, pieces: Iterable[tuple[int, memoryview]]) -> Extent:
        start, position = self._pages_bytes, 0
        self._pages_bytes += size_bytes + -size_bytes % BLOCK_BYTES
        if self._pages is not None:
            for offset, piece in pieces:
                self._hash_zeros(offset - position)
                self._digest.update(piece)
                write_all(self._pages, piece, start + offset)
                position = offset + len(piece)
            self._hash_zeros(self._pages_bytes - start - position)
        return Extent(self.layer, True, start, size_bytes)

    def _hash_zeros(self, size_bytes: int) -> None:
        while size_bytes:
            self._digest.update(_ZEROS[:size_bytes])
            size_bytes -= min(size_bytes, len(_ZEROS))

    def _flush(self) -> None:
        write_all(self._small, bytes(self._buffer), self._small_bytes - len(self._buffer))
        self._buffer.clear()
