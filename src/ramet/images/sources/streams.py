"""Byte streams that may be compressed, in one pass with bounded memory: gzip, zstd, xz, bzip2 or nothing.

Sources: the .xz file format 1.2, section 2 (streams may follow one another, with padding); bzip2's manual
(so may its streams).
"""

from __future__ import annotations

import bz2
import lzma
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Protocol

from ramet.errors import DamagedError
from ramet.images.layers.unpack import decompressed
from ramet.units import GIB, KIB, MIB, format_bytes

_XZ_MAGIC: Final = b"\xfd7zXZ\x00"
_BZIP2_MAGIC: Final = b"BZh"
_LONGEST_MAGIC: Final = 6
_OUTPUT_BYTES: Final = 1 * MIB
_XZ_MEMORY_BYTES: Final = 256 * MIB
"""xz -9 needs 65 MiB to decompress, and no preset more."""
UNPACKED_BYTES: Final = 64 * GIB
"""The largest archive, unpacked (`layers.limits`)."""


class _Decompressor(Protocol):
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...


def without_xz(chunks: Iterable[bytes], *, limit_bytes: int = UNPACKED_BYTES) -> Iterator[bytes]:
    """Yield a stream, decompressed if it is xz or bzip2: what `layers.unpack` doesn't know.

    Raises `DamagedError` if it is corrupt, cut or unpacks to more than `limit_bytes`.
    """
    rest = iter(chunks)
    head = b""
    while len(head) < _LONGEST_MAGIC and (chunk := next(rest, None)) is not None:
        head += chunk
    whole = _behind(head, rest)
    if head.startswith(_XZ_MAGIC):
        yield from _bounded(_unpacked(whole, _xz, b"\0"), limit_bytes)
    elif head.startswith(_BZIP2_MAGIC):
        yield from _bounded(_unpacked(whole, bz2.BZ2Decompressor, b""), limit_bytes)
    else:
        yield from whole


def unpacked(chunks: Iterable[bytes], *, limit_bytes: int = UNPACKED_BYTES) -> Iterator[bytes]:
    """Yield a stream, decompressed if its first bytes say that it is compressed. Raises as `without_xz`."""
    return decompressed(without_xz(chunks, limit_bytes=limit_bytes), limit_bytes=limit_bytes)


def is_compressed(head: bytes) -> bool:
    """Tell whether a stream that begins so is compressed."""
    return head.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd", _XZ_MAGIC, _BZIP2_MAGIC)) or (
        head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50
    )


def pieces(chunks: Iterable[bytes], size_bytes: int) -> tuple[bytes, Iterator[bytes]]:
    """Return the first `size_bytes` of a stream, or fewer if it ends, and the whole stream."""
    rest = iter(chunks)
    head = b""
    while len(head) < size_bytes and (chunk := next(rest, None)) is not None:
        head += chunk
    return head[:size_bytes], _behind(head, rest)


def _behind(head: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    if head:
        yield head
    yield from rest


def _bounded(chunks: Iterator[bytes], limit_bytes: int) -> Iterator[bytes]:
    size_bytes = 0
    for chunk in chunks:
        size_bytes += len(chunk)
        if size_bytes > limit_bytes:
            raise DamagedError(f"it unpacks to more than {format_bytes(limit_bytes)}")
        yield chunk


def _xz() -> _Decompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES)


def _unpacked(chunks: Iterator[bytes], make: Callable[[], _Decompressor], padding: bytes) -> Iterator[bytes]:
    """Unpack a series of streams, between and behind which there may be `padding`."""
    decompressor, begun = make(), False
    for chunk in chunks:
        for at in range(0, len(chunk), 64 * KIB):
            data = chunk[at : at + 64 * KIB]
            while data or (begun and not decompressor.needs_input and not decompressor.eof):
                if not begun:
                    if padding and not (data := data.lstrip(padding)):
                        break
                    decompressor, begun = make(), True
                try:
                    piece = decompressor.decompress(data, _OUTPUT_BYTES)
                except (lzma.LZMAError, OSError, EOFError, ValueError) as error:
                    raise DamagedError(f"it can't be decompressed: {error}") from error
                data = b""
                if piece:
                    yield piece
                if decompressor.eof:
                    data, begun = decompressor.unused_data, False
    if begun:
        raise DamagedError("it is cut short")
