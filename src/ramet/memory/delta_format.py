"""The file format of a delta: the pages that differ from a mem-file. Version 1.

From the beginning of the file: the data of the pages that aren't zeros, in the order of the index, so it is
aligned to pages; then the index, 8 bytes per run; then a trailer of 64 bytes, little-endian:

    magic "RAMETDLT"   8 bytes
    version            u32
    page size          u32, bytes
    memory size        u64, bytes: of the mem-file that this belongs to
    runs               u64
    data               u64, bytes
    check              u32: CRC-32 of the index and of the trailer up to here
    zeros              20 bytes

An entry of the index is a u64: bits 63-28 the first page's number, bits 27-1 the number of pages, bit 0 set
for pages of zeros (which have no data). Entries ascend and don't overlap.

The trailer is at the end because the index is complete only after all pages, and pages are seen once. The
data isn't checked here: the digest of the whole file is in its manifest.
"""

from __future__ import annotations

import os
import struct
import sys
import zlib
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NoReturn

import msgspec

from ramet.errors import DamagedError
from ramet.model.record import DeltaRun
from ramet.system.files import filesystem_errors, open_regular
from ramet.units import PAGE_SIZE_BYTES

MAGIC: Final = b"RAMETDLT"
VERSION: Final = 1
TRAILER_BYTES: Final = 64
ENTRY_BYTES: Final = 8

_FIELDS: Final = struct.Struct("<8sIIQQQ")
_CHECK: Final = struct.Struct("<I")
_PADDING: Final = bytes(TRAILER_BYTES - _FIELDS.size - _CHECK.size)
_MOST_PAGES: Final = (1 << 27) - 1
_MOST_PAGE: Final = (1 << 36) - 1


class DeltaFacts(msgspec.Struct, frozen=True):
    """The sizes of a delta."""

    memory_bytes: int
    """The size of the mem-file that it belongs to."""
    runs: int
    data_bytes: int
    """Pages that aren't zeros."""
    zero_bytes: int
    """Pages that are zeros now; they take no room here, but in a fork they do."""

    @property
    def size_bytes(self) -> int:
        """The length of the file."""
        return self.data_bytes + self.runs * ENTRY_BYTES + TRAILER_BYTES

    @property
    def applied_bytes(self) -> int:
        """Bytes that each fork writes, and that become its own."""
        return self.data_bytes + self.zero_bytes


class Index:
    """An index being written. Runs are added in ascending order."""

    def __init__(self) -> None:
        self._entries = array("Q")
        self._next_page = 0
        self._pages = [0, 0]

    def add(self, file_offset: int, length_bytes: int, *, zeros: bool) -> None:
        """Add a run. A run that continues the last run, and is of its kind, extends the last run."""
        page, pages = file_offset // PAGE_SIZE_BYTES, length_bytes // PAGE_SIZE_BYTES
        assert page >= self._next_page
        assert page + pages <= _MOST_PAGE
        assert not (file_offset | length_bytes) % PAGE_SIZE_BYTES
        self._pages[zeros] += pages
        if self._entries and page == self._next_page:
            last = self._entries[-1]
            before = last >> 1 & _MOST_PAGES
            if last & 1 == zeros and before + pages <= _MOST_PAGES:
                self._entries[-1] = last + (pages << 1)
                self._next_page += pages
                return
        self._next_page = page + pages
        while pages:
            count = min(pages, _MOST_PAGES)
            self._entries.append(page << 28 | count << 1 | zeros)
            page, pages = page + count, pages - count

    def finish(self, memory_bytes: int) -> tuple[bytes, DeltaFacts]:
        """Return the bytes that follow the data in the file, and the facts of the delta."""
        assert self._next_page * PAGE_SIZE_BYTES <= memory_bytes
        data, zeros = (count * PAGE_SIZE_BYTES for count in self._pages)
        facts = DeltaFacts(memory_bytes, len(self._entries), data, zeros)
        entries = _little_endian(self._entries).tobytes()
        fields = _FIELDS.pack(MAGIC, VERSION, PAGE_SIZE_BYTES, memory_bytes, facts.runs, data)
        return entries + fields + _CHECK.pack(zlib.crc32(fields, zlib.crc32(entries))) + _PADDING, facts


class Delta:
    """A delta that is open, and whose index is as it should be."""

    def __init__(self, descriptor: int, name: str, facts: DeltaFacts, entries: array[int]) -> None:
        self.descriptor = descriptor
        self.name = name
        self.facts = facts
        self._entries = entries

    def runs(self) -> Iterator[DeltaRun]:
        """Yield the runs of the delta, ascending."""
        position = 0
        for entry in self._entries:
            length = (entry >> 1 & _MOST_PAGES) * PAGE_SIZE_BYTES
            offset = (entry >> 28) * PAGE_SIZE_BYTES
            if entry & 1:
                yield DeltaRun(offset, length, None)
            else:
                yield DeltaRun(offset, length, position)
                position += length


@contextmanager
def open_delta(source: Path | int, memory_bytes: int) -> Iterator[Delta]:
    """Open a delta for a mem-file of that size, from a path or from a descriptor, which stays open.

    Reading takes at most 8 bytes of memory for each page of `memory_bytes`, for any file. Raises
    `DamagedError` when the file isn't a delta for such a mem-file, `FilesystemError`.
    """
    if isinstance(source, int):
        yield _read(source, f"descriptor {source}", memory_bytes)
        return
    with filesystem_errors("read", source), open_regular(source) as descriptor:
        yield _read(descriptor, str(source), memory_bytes)


def _read(descriptor: int, name: str, memory_bytes: int) -> Delta:
    with filesystem_errors("read", name):
        size = os.fstat(descriptor).st_size
        if size < TRAILER_BYTES:
            _damaged(name, "it is too short")
        trailer = _read_at(descriptor, name, size - TRAILER_BYTES, TRAILER_BYTES)
        magic, version, page, memory, runs, data = _FIELDS.unpack_from(trailer)
        if magic != MAGIC:
            _damaged(name, "it is no delta, or its end is missing")
        if version != VERSION:
            _damaged(name, f"it is of version {version}, this ramet knows {VERSION}")
        if page != PAGE_SIZE_BYTES:
            _damaged(name, f"its pages have {page} bytes, this machine's {PAGE_SIZE_BYTES}")
        if memory != memory_bytes:
            _damaged(name, f"it belongs to {memory} bytes of RAM, not to {memory_bytes}")
        pages = memory_bytes // PAGE_SIZE_BYTES
        if runs > pages or data > memory_bytes or data + runs * ENTRY_BYTES + TRAILER_BYTES != size:
            _damaged(name, f"its parts don't make up its {size} bytes")
        content = _read_at(descriptor, name, data, runs * ENTRY_BYTES)
    fields = trailer[: _FIELDS.size]
    check = _CHECK.pack(zlib.crc32(fields, zlib.crc32(content))) + _PADDING
    if trailer[_FIELDS.size :] != check:
        _damaged(name, "its index has changed")
    entries = _little_endian(array("Q", content))
    return Delta(descriptor, name, _checked(entries, name, memory_bytes, data), entries)


def _checked(entries: array[int], name: str, memory_bytes: int, data_bytes: int) -> DeltaFacts:
    following = data = zeros = 0
    for entry in entries:
        page, pages = entry >> 28, entry >> 1 & _MOST_PAGES
        if page < following or not pages:
            _damaged(name, "its runs aren't in order")
        following = page + pages
        if entry & 1:
            zeros += pages
        else:
            data += pages
    if following * PAGE_SIZE_BYTES > memory_bytes:
        _damaged(name, f"it has pages beyond {memory_bytes} bytes of RAM")
    if data * PAGE_SIZE_BYTES != data_bytes:
        _damaged(name, "its runs don't make up its data")
    return DeltaFacts(memory_bytes, len(entries), data_bytes, zeros * PAGE_SIZE_BYTES)


def _read_at(descriptor: int, name: str, offset: int, length_bytes: int) -> bytes:
    content = b""
    while len(content) < length_bytes:
        piece = os.pread(descriptor, length_bytes - len(content), offset + len(content))
        if not piece:
            _damaged(name, "it shrank while it was read")
        content += piece
    return content


def _little_endian(entries: array[int]) -> array[int]:
    if sys.byteorder == "big":
        entries = entries[:]
        entries.byteswap()
    return entries


def _damaged(name: str, why: str) -> NoReturn:
    raise DamagedError(f"{name} can't be used: {why}", hint="make the capture again")
