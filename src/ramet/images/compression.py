"""Decompression with a bound, for the formats in which kernels, modules and packages come."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Protocol

import zstandard

from ramet.errors import DamagedError, UnavailableError
from ramet.units import KIB, format_bytes

CHUNK_BYTES: Final = 16 * KIB
"""Bytes to feed per call. Small, because a crafted chunk can unpack to a thousand times its size."""

_ERRORS: Final = (lzma.LZMAError, zlib.error, zstandard.ZstdError, OSError, EOFError, ValueError)


class _Decompressor(Protocol):
    def decompress(self, data: bytes, /) -> bytes: ...

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...


_DECOMPRESSORS: Final[dict[str, Callable[[], _Decompressor]]] = {
    ".bz2": bz2.BZ2Decompressor,
    ".gz": lambda: zlib.decompressobj(wbits=31),
    ".lzma": lambda: lzma.LZMADecompressor(lzma.FORMAT_ALONE),
    ".xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ),
    ".zst": lambda: zstandard.ZstdDecompressor().decompressobj(),
}


def decompress_chunks(suffix: str, chunks: Iterable[bytes], *, limit_bytes: int) -> Iterator[bytes]:
    """Decompress the chunks of a stream. `suffix` names the compression; an empty suffix means none.

    Raises `UnavailableError` for another suffix; `DamagedError` when the stream is corrupt, cut, followed by
    something else, or unpacks to more than `limit_bytes`. The output until then can't be used.
    """
    if suffix and suffix not in _DECOMPRESSORS:
        raise UnavailableError(f"ramet doesn't unpack {suffix} files")
    decompressor = _DECOMPRESSORS[suffix]() if suffix else None
    size_bytes = 0
    for chunk in chunks:
        try:
            unpacked = decompressor.decompress(chunk) if decompressor else chunk
        except _ERRORS as error:
            raise DamagedError(f"it can't be decompressed: {error}") from error
        size_bytes += len(unpacked)
        if size_bytes > limit_bytes:
            raise DamagedError(f"it unpacks to more than {format_bytes(limit_bytes)}")
        yield unpacked
    if decompressor and (not decompressor.eof or decompressor.unused_data):
        raise DamagedError("it is cut short" if not decompressor.eof else "something follows its end")


def decompress(suffix: str, data: bytes | memoryview, *, limit_bytes: int) -> bytes:
    """Decompress bytes in memory as `decompress_chunks` does."""
    chunks = (bytes(data[at : at + CHUNK_BYTES]) for at in range(0, len(data), CHUNK_BYTES))
    return b"".join(decompress_chunks(suffix, chunks, limit_bytes=limit_bytes))
