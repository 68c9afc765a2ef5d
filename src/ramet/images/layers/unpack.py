"""A layer's bytes, decompressed in one pass with bounded memory, and its diff id.

Sources: the OCI image specification 1.1, layer.md ("+gzip", "+zstd") and config.md (DiffID); RFC 1952 section
2.2 (a gzip file is a series of members); RFC 8878 section 3 (frames, skippable frames, window size).
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Iterator
from typing import Final

import zstandard

from ramet.errors import DamagedError
from ramet.images.layers.limits import DEFAULT_LIMITS, Limits
from ramet.units import MIB, format_bytes

_GZIP_MAGIC: Final = b"\x1f\x8b"
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_SKIPPABLE_MAGIC: Final = b"\x2a\x4d\x18"  # after a byte 0x50…0x5f
_WINDOW_BYTES: Final = 128 * MIB
"""The largest window that zstd itself accepts without a special option."""
_OUTPUT_BYTES: Final = 1 * MIB
_ZSTD_INPUT_BYTES: Final = 256
"""Bytes per call: four bytes may unpack to a block of 128 KiB (RFC 8878, RLE blocks), so 8 MiB at most."""


def decompressed(chunks: Iterable[bytes], *, limit_bytes: int) -> Iterator[bytes]:
    """Yield a layer's tar archive. The first bytes tell the compression: gzip, zstd, none.

    Raises `DamagedError` if the stream is corrupt, cut or unpacks to more than `limit_bytes`.
    """
    size_bytes = 0
    for piece in _by_magic(iter(chunks)):
        size_bytes += len(piece)
        if size_bytes > limit_bytes:
            raise DamagedError(f"it unpacks to more than {format_bytes(limit_bytes)}")
        yield piece


def _by_magic(chunks: Iterator[bytes]) -> Iterator[bytes]:
    head = b""
    while len(head) < len(_ZSTD_MAGIC) and (chunk := next(chunks, None)) is not None:
        head += chunk
    if head.startswith(_GZIP_MAGIC):
        return _gzip(_behind(head, chunks))
    if head.startswith(_ZSTD_MAGIC) or (head[1:4] == _SKIPPABLE_MAGIC and head[0] & 0xF0 == 0x50):
        return _zstd(_behind(head, chunks))
    return _behind(head, chunks)


def _behind(head: bytes, chunks: Iterator[bytes]) -> Iterator[bytes]:
    if head:
        yield head
    yield from chunks


def _gzip(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Unpack a series of members; zeros may follow the last (tapes; gzip(1) allows them too)."""
    decompressor = zlib.decompressobj(wbits=31)
    begun, ended = False, False
    for chunk in chunks:
        data = chunk
        while data:
            if not begun:
                if ended and not (data := data.lstrip(b"\0")):
                    break
                decompressor, begun = zlib.decompressobj(wbits=31), True
            try:
                if piece := decompressor.decompress(data, _OUTPUT_BYTES):
                    yield piece
            except zlib.error as error:
                raise DamagedError(f"it can't be decompressed: {error}") from error
            data = decompressor.unconsumed_tail
            if decompressor.eof:
                data, begun, ended = decompressor.unused_data, False, True
    # What the decompressor still holds: it stops at `max_length` with all input taken, too.
    while begun and not decompressor.eof:
        try:
            piece = decompressor.decompress(decompressor.unconsumed_tail, _OUTPUT_BYTES)
        except zlib.error as error:
            raise DamagedError(f"it can't be decompressed: {error}") from error
        if not piece:
            raise DamagedError("it is cut short")
        yield piece


def _zstd(chunks: Iterator[bytes]) -> Iterator[bytes]:
    context = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES)
    frame = None
    for chunk in chunks:
        for at in range(0, len(chunk), _ZSTD_INPUT_BYTES):
            data = chunk[at : at + _ZSTD_INPUT_BYTES]
            while data:
                frame = frame or context.decompressobj()
                try:
                    if piece := frame.decompress(data):
                        yield piece
                except zstandard.ZstdError as error:
                    raise DamagedError(f"it can't be decompressed: {error}") from error
                data = b""
                if frame.eof:
                    data, frame = frame.unused_data, None
    if frame is not None:
        raise DamagedError("it is cut short")


class LayerStream:
    """A tar archive's bytes, read once from front to back and hashed on the way."""

    def __init__(self, chunks: Iterable[bytes], limits: Limits = DEFAULT_LIMITS) -> None:
        self._chunks = decompressed(chunks, limit_bytes=limits.unpacked_bytes)
        self._buffer = memoryview(b"")
        self._digest = hashlib.sha256()

    def pieces(self, size_bytes: int) -> Iterator[memoryview]:
        """Yield the next `size_bytes` as they come. Raises `DamagedError` if there are fewer."""
        while size_bytes:
            if not self._fill():
                raise DamagedError("it is cut short")
            piece = self._buffer[:size_bytes]
            self._buffer = self._buffer[len(piece) :]
            size_bytes -= len(piece)
            yield piece

    def read(self, size_bytes: int) -> bytes:
        """Return exactly the next `size_bytes`. The caller bounds them. Raises `DamagedError` if cut."""
        if len(self._buffer) >= size_bytes:
            piece, self._buffer = self._buffer[:size_bytes], self._buffer[size_bytes:]
            return bytes(piece)
        return b"".join(self.pieces(size_bytes))

    def at_end(self) -> bool:
        """Tell whether nothing follows."""
        return not self._fill()

    def skip(self, size_bytes: int) -> None:
        """Read over the next `size_bytes`. Raises `DamagedError` if there are fewer."""
        for _ in self.pieces(size_bytes):
            pass

    def finish(self) -> str:
        """Read the rest and return the diff id of the whole archive: `sha256:` and 64 digits."""
        while self._fill():
            self._buffer = memoryview(b"")
        return f"sha256:{self._digest.hexdigest()}"

    def _fill(self) -> bool:
        while not self._buffer:
            if (chunk := next(self._chunks, None)) is None:
                return False
            self._digest.update(chunk)
            self._buffer = memoryview(chunk)
        return True
