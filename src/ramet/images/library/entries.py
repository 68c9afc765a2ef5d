"""The entries of a layer, kept beside its blob: the layer is merged again without its archive.

A file is a series of frames: 4 bytes with the length, then a list of up to a thousand entries, each with the
place of its contents, as msgpack in zstd. Files are read after a comparison of their digest, so what is in
them was checked when the layer was unpacked.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from typing import Final

import msgspec
import zstandard

from ramet.errors import DamagedError
from ramet.images.layers.merge import Merge
from ramet.images.layers.tar_entries import TarEntry
from ramet.images.layers.tree import Extent
from ramet.system import threads
from ramet.system.files import write_all
from ramet.units import MIB

_FRAME_ENTRIES: Final = 1000
_FRAME_BYTES: Final = 1 * MIB
"""Of names, links and attributes, about: a frame is in memory as a whole."""
_LENGTH_BYTES: Final = 4
_READ_BYTES: Final = 1 * MIB
_LEVEL: Final = 1

_Pair = tuple[TarEntry, Extent | None]


class Recorder:
    """A merge that also writes down what it is given, into the empty file `descriptor`."""

    def __init__(self, merge: Merge, descriptor: int) -> None:
        self._merge = merge
        self._descriptor = descriptor
        self._pairs: list[_Pair] = []
        self._pairs_bytes = 0
        self._written = 0
        self._digest = hashlib.sha256()
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL)

    def begin_layer(self) -> None:
        """Begin the layer, as `Merge` does."""
        self._merge.begin_layer()

    def add(self, entry: TarEntry, content: Extent | None = None) -> None:
        """Merge and write down the next entry. Raises `OSError`, and what `Merge` raises."""
        self._merge.add(entry, content)
        self._pairs.append((entry, content))
        self._pairs_bytes += entry.metadata_bytes
        if len(self._pairs) == _FRAME_ENTRIES or self._pairs_bytes > _FRAME_BYTES:
            self._flush()

    def finish(self) -> str:
        """Write the rest. Returns the digest of the file, 64 hex digits. Raises `OSError`."""
        self._flush()
        return self._digest.hexdigest()

    def _flush(self) -> None:
        frame = self._compressor.compress(msgspec.msgpack.encode(self._pairs))
        self._pairs.clear()
        self._pairs_bytes = 0
        data = len(frame).to_bytes(_LENGTH_BYTES, "little") + frame
        write_all(self._descriptor, data, self._written)
        self._digest.update(data)
        self._written += len(data)


def replay(merge: Merge, descriptor: int, *, layer: int) -> None:
    """Merge the entries of a file, whose digest was compared, as the layer with that number.

    Raises `DamagedError` as `Merge` does; `OSError`.
    """
    merge.begin_layer()
    decoder = msgspec.msgpack.Decoder(list[_Pair])
    for frame in _frames(descriptor):
        threads.check_cancelled()
        for entry, content in decoder.decode(zstandard.ZstdDecompressor().decompress(frame)):
            merge.add(entry, None if content is None else content._replace(layer=layer))


def file_digest(descriptor: int) -> str:
    """Compute the SHA-256 of an open file, 64 hex digits. Raises `OSError`."""
    digest, offset = hashlib.sha256(), 0
    while piece := os.pread(descriptor, _READ_BYTES, offset):
        digest.update(piece)
        offset += len(piece)
    return digest.hexdigest()


def _frames(descriptor: int) -> Iterator[bytes]:
    offset, end = 0, os.fstat(descriptor).st_size
    while offset < end:
        length = int.from_bytes(os.pread(descriptor, _LENGTH_BYTES, offset), "little")
        frame = os.pread(descriptor, length, offset + _LENGTH_BYTES)
        if len(frame) != length:
            raise DamagedError("the entries of a layer are cut short")
        offset += _LENGTH_BYTES + length
        yield frame
