"""A compressed mem-file: zstd in independent frames, which are made and read in parallel.

There is a frame per 4 MiB of the file, in order, and behind them, in a frame that readers skip, the size of
each: zstd's seekable format. `zstd -d` unpacks it, too. A stretch of zeros takes about 150 bytes; the
unpacked file has holes in place of pages of zeros.

Source: zstd's contrib/seekable_format/zstd_seekable_compression_format.md, version 0.1.0; RFC 8878.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
from array import array
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple, overload

import zstandard

from ramet.errors import DamagedError
from ramet.memory.integrity import MAKE_AGAIN
from ramet.system.files import write_all
from ramet.system.zeros import not_zeros
from ramet.units import MIB

FRAME_BYTES: Final = 4 * MIB
"""Bytes of the raw file per frame. Larger frames gain less than 1 %, smaller frames cost up to 7 %."""
LOWEST_LEVEL: Final = 1
HIGHEST_LEVEL: Final = 19
"""zstd has higher ones, which want hundreds of MiB for each frame that is made or read."""
USUAL_LEVEL: Final = 3
"""zstd's own."""

_MOST_PACKED_BYTES: Final = FRAME_BYTES + FRAME_BYTES // 128 + 512  # ZSTD_compressBound is less
_SKIPPABLE_HEAD: Final = struct.Struct("<II")
_ENTRY: Final = struct.Struct("<II")
_FOOTER: Final = struct.Struct("<IBI")
_SKIPPABLE_MAGIC: Final = 0x184D2A5E
_SEEKABLE_MAGIC: Final = 0x8F92EAB1
_TABLE_WITHOUT_CHECKSUMS: Final = 0
_own: Final = threading.local()
"""zstd's contexts, which one thread at a time may use: they are kept for its next frame."""


class Frame(NamedTuple):
    """The place of a frame, and the stretch of the raw file that the frame holds."""

    packed_offset: int
    packed_bytes: int
    start: int
    length: int


class Frames(Sequence[Frame]):
    """The frames of a file, in order. Each takes 8 bytes, because a file from elsewhere may have millions."""

    def __init__(self, ends: array[int], size_bytes: int) -> None:
        self._ends = ends
        self._size_bytes = size_bytes

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, number: int) -> Frame: ...
    @overload
    def __getitem__(self, number: slice) -> list[Frame]: ...

    def __getitem__(self, number: int | slice) -> Frame | list[Frame]:
        if isinstance(number, slice):
            return [self[index] for index in range(*number.indices(len(self)))]
        number = range(len(self))[number]
        begin = self._ends[number - 1] if number else 0
        start = number * FRAME_BYTES
        return Frame(begin, self._ends[number] - begin, start, length_at(start, self._size_bytes))


def starts(size_bytes: int) -> range:
    """Return where the stretch of each frame begins in a raw file of that size."""
    return range(0, size_bytes, FRAME_BYTES)


def length_at(start: int, size_bytes: int) -> int:
    """Return the length of the stretch that begins at `start`."""
    return min(FRAME_BYTES, size_bytes - start)


def pack(descriptor: int, start: int, length: int, level: int) -> tuple[bytes, bytes | None]:
    """Compress a stretch of a raw file. Returns its frame and its content, None for zeros.

    The frame is decompressed again and compared before it is returned, because the raw file may be gone when
    the frame is needed. Raises `OSError`, `DamagedError` when the file is shorter or the comparison fails.
    """
    if _is_hole(descriptor, start, length):
        return _zeros(length, level), None
    data = os.pread(descriptor, length, start)
    while len(data) < length and (more := os.pread(descriptor, length - len(data), start + len(data))):
        data += more
    if len(data) != length:
        raise DamagedError(f"the file ends within {length} bytes at {start}", hint=MAKE_AGAIN)
    if data == bytes(length):
        return _zeros(length, level), None
    packed = _compressor(level).compress(data)
    if _unpacked(packed, length) != data:
        raise DamagedError(
            f"what zstd made of {length} bytes at {start} doesn't come back",
            hint="the raw file is unchanged; check this machine's memory",
        )
    return packed, data


def _is_hole(descriptor: int, start: int, length: int) -> bool:
    try:
        return os.lseek(descriptor, start, os.SEEK_DATA) >= start + length
    except OSError as error:
        return error.errno == errno.ENXIO  # no data up to the end; else it can't be told, and is read


@lru_cache(maxsize=8)
def _zeros(length: int, level: int) -> bytes:
    return zstandard.ZstdCompressor(level=level, write_checksum=True).compress(bytes(length))


def _compressor(level: int) -> zstandard.ZstdCompressor:
    if getattr(_own, "level", None) != level:
        _own.compressor = zstandard.ZstdCompressor(level=level, write_checksum=True)
        _own.level = level
    compressor: zstandard.ZstdCompressor = _own.compressor
    return compressor


def _unpacked(packed: bytes, length: int) -> bytes:
    # The size in its head is what zstandard allocates: it is looked at first.
    if zstandard.frame_content_size(packed) != length:
        raise zstandard.ZstdError(f"a frame of {length} bytes says that it has others")
    if (decompressor := getattr(_own, "decompressor", None)) is None:
        decompressor = _own.decompressor = zstandard.ZstdDecompressor(max_window_size=2 * FRAME_BYTES)
    data: bytes = decompressor.decompress(packed, max_output_size=length, allow_extra_data=False)
    if len(data) != length:
        raise zstandard.ZstdError(f"{len(data)} bytes came, where {length} were to")
    return data


def table(packed_sizes: Sequence[int], size_bytes: int) -> bytes:
    """Return the table that follows the frames, whose sizes are `packed_sizes`."""
    entries = b"".join(
        _ENTRY.pack(packed, length_at(start, size_bytes))
        for packed, start in zip(packed_sizes, starts(size_bytes), strict=True)
    )
    footer = _FOOTER.pack(len(packed_sizes), _TABLE_WITHOUT_CHECKSUMS, _SEEKABLE_MAGIC)
    return _SKIPPABLE_HEAD.pack(_SKIPPABLE_MAGIC, len(entries) + len(footer)) + entries + footer


def read_table(descriptor: int, path: Path, size_bytes: int) -> Frames:
    """Read the frames' places from the open compressed file `path` of a raw file of `size_bytes`.

    Every field of the file is checked. Raises `DamagedError`, `OSError`.
    """
    expected = starts(size_bytes)
    length = _SKIPPABLE_HEAD.size + len(expected) * _ENTRY.size + _FOOTER.size
    begin = os.fstat(descriptor).st_size - length
    trailer = os.pread(descriptor, length, begin) if begin >= 0 else b""
    if len(trailer) != length:
        raise damaged(path, "it is too short for its frames")
    if _SKIPPABLE_HEAD.unpack_from(trailer) != (_SKIPPABLE_MAGIC, length - _SKIPPABLE_HEAD.size) or (
        _FOOTER.unpack_from(trailer, length - _FOOTER.size)
        != (len(expected), _TABLE_WITHOUT_CHECKSUMS, _SEEKABLE_MAGIC)
    ):
        raise damaged(path, "its end isn't the table of its frames")
    ends, offset = array("Q"), 0
    entries = _ENTRY.iter_unpack(memoryview(trailer)[_SKIPPABLE_HEAD.size : -_FOOTER.size])
    for (packed, unpacked), start in zip(entries, expected, strict=True):
        if unpacked != length_at(start, size_bytes) or not 0 < packed <= _MOST_PACKED_BYTES:
            raise damaged(path, f"its table gives {packed} bytes for {unpacked} at {start}")
        offset += packed
        ends.append(offset)
    if offset != begin:
        raise damaged(path, f"its frames have {begin} bytes, and {offset} by its table")
    return Frames(ends, size_bytes)


def unpack(descriptor: int, path: Path, frame: Frame) -> bytes | None:
    """Return the content of a frame, None for zeros. Raises `DamagedError`, `OSError`."""
    packed = os.pread(descriptor, frame.packed_bytes, frame.packed_offset)
    if packed == _zeros(frame.length, USUAL_LEVEL):
        return None
    try:
        data = _unpacked(packed, frame.length)
    except zstandard.ZstdError as error:
        raise damaged(path, f"the frame at {frame.packed_offset}: {error}") from error
    return None if data == bytes(frame.length) else data


def unpack_into(descriptor: int, path: Path, frame: Frame, out: int) -> bytes | None:
    """Decompress a frame into the raw file `out`, whose size is set. Returns and raises as `unpack`.

    Pages of zeros stay holes.
    """
    data = unpack(descriptor, path, frame)
    if data is not None:
        view = memoryview(data)
        for first, last in not_zeros(view, frame.start):
            write_all(out, view[first:last], frame.start + first)
    return data


def damaged(path: Path, why: str) -> DamagedError:
    """Make the error for a compressed file whose content isn't what was written."""
    return DamagedError(f"{path} is damaged: {why}", hint=MAKE_AGAIN)
