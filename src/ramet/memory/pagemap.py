"""The pages of a private file mapping that a process has changed.

A page of a `MAP_PRIVATE` file mapping comes from the page cache until it is written to; then it is a copy,
anonymous, private. So *present or swapped, and not of a file* is exactly *changed*. The kernel tells that in
two ways, which agree: the ioctl PAGEMAP_SCAN (Linux 6.7 and later) walks page tables and returns ranges;
/proc/PID/pagemap has eight bytes per page. The kernel's answer changes as the process runs, so the process is
paused meanwhile.

A subrange that is no longer mapped from the mem-file has changed as a whole: a balloon maps anonymous memory
over the pages that the guest gave back. Its absent pages read as zeros, and so do pages that were only read
there, which PAGEMAP_SCAN can tell from others and the page map can't.

Source: Documentation/admin-guide/mm/pagemap.rst; include/uapi/linux/fs.h (struct pm_scan_arg);
ioctl_pagemap_scan(2).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum, auto
from operator import sub
from typing import Final, NamedTuple, cast

import msgspec

from ramet.errors import UnavailableError
from ramet.memory.mappings import Area, Mapping, areas
from ramet.memory.procfs import process_errors
from ramet.units import PAGE_SIZE_BYTES, FileOffset, HostVirtual

_PAGE_IS_FILE: Final = 1 << 2
_PAGE_IS_PRESENT: Final = 1 << 3
_PAGE_IS_SWAPPED: Final = 1 << 4
_PAGE_IS_PFNZERO: Final = 1 << 5
_SCAN_ARGUMENT: Final = struct.Struct("=12Q")
# _IOWR('f', 16, struct pm_scan_arg)
_PAGEMAP_SCAN: Final = 3 << 30 | _SCAN_ARGUMENT.size << 16 | ord("f") << 8 | 16
_REGION_WORDS: Final = 3  # struct page_region: start, end, categories
_REGIONS: Final = 32_768

_ENTRY_BYTES: Final = 8
_PAGEMAP_CHUNK_PAGES: Final = 131_072
_TOP_BYTE: Final = 7 if sys.byteorder == "little" else 0
_PRESENT, _SWAPPED, _FILE = 0x80, 0x40, 0x20  # bits 63, 62 and 61, as they stand in an entry's top byte
_MARK_ALL: Final = bytes(bool(top & (_PRESENT | _SWAPPED)) for top in range(256))
_MARK_ANONYMOUS: Final = bytes(bool(top & (_PRESENT | _SWAPPED)) and not top & _FILE for top in range(256))
_MARKED: Final = re.compile(rb"\x01+")


class _Spans(NamedTuple):
    """Ascending ranges of addresses, as two lists: 25,000 pairs would cost more than the kernel's scan."""

    starts: list[int]
    ends: list[int]


_Lister = Callable[[int, int, int, bool], _Spans]
"""(pagemap descriptor, start, end, anonymous only) -> ranges of pages present or swapped, ascending: not of a
file, or (where nothing is) not the kernel's page of zeros."""


class Run(msgspec.Struct, frozen=True, gc=False):
    """Neighbouring changed pages."""

    file_offset: FileOffset
    length_bytes: int
    host_start: HostVirtual | None
    """The address of the pages; None for pages of zeros, of which nothing is read."""


class _Now(Enum):
    """The kind of mapping that is now in the place of a mem-file's mapping."""

    THE_FILE = auto()
    ANONYMOUS = auto()
    ANOTHER_FILE = auto()
    NOTHING = auto()


def changed_runs(pid: int, mappings: Sequence[Mapping]) -> list[Run]:
    """List the pages in which the process differs from its mem-file, per mapping; swapped pages included.

    Uses PAGEMAP_SCAN, or the page map if the kernel has no PAGEMAP_SCAN. The process must be paused, or the
    list is out of date. A page that was written with its old content is on the list too.

    Raises `VmmError` when the process has ended, `UnavailableError` when the kernel doesn't permit reading.
    """
    try:
        return changed_runs_by_scan(pid, mappings)
    except _NoScanError:
        return changed_runs_by_pagemap(pid, mappings)


def changed_runs_by_scan(pid: int, mappings: Sequence[Mapping]) -> list[Run]:
    """List changed pages as `changed_runs`, by PAGEMAP_SCAN alone.

    Raises `UnavailableError` also on a kernel older than 6.7.
    """
    return _runs(pid, mappings, _list_by_scan)


def changed_runs_by_pagemap(pid: int, mappings: Sequence[Mapping]) -> list[Run]:
    """List changed pages as `changed_runs`, by /proc/PID/pagemap alone, which every Linux since 3.5 has.

    Raises as `changed_runs` does.
    """
    return _runs(pid, mappings, _list_by_pagemap)


class _NoScanError(UnavailableError):
    """The kernel has no PAGEMAP_SCAN."""


def _runs(pid: int, mappings: Sequence[Mapping], lister: _Lister) -> list[Run]:
    if not mappings:
        return []
    within = min(mapping.host_start for mapping in mappings), max(mapping.host_end for mapping in mappings)
    now = list(areas(pid, within))
    runs: list[Run] = []
    with process_errors(pid, "list the changed pages"):
        descriptor = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        try:
            for mapping in mappings:
                for start, end, what in _pieces(mapping, now):
                    runs += _runs_of_piece(descriptor, mapping, start, end, what, lister)
        finally:
            os.close(descriptor)
    return runs


def _runs_of_piece(
    descriptor: int, mapping: Mapping, start: int, end: int, what: _Now, lister: _Lister
) -> list[Run]:
    shift = mapping.file_offset - mapping.host_start
    match what:
        case _Now.THE_FILE:
            return _readable(lister(descriptor, start, end, True), shift)
        case _Now.ANONYMOUS:
            spans = lister(descriptor, start, end, False)
            absent = _Spans([start, *spans.ends], [*spans.starts, end])
            return _readable(spans, shift) + _zeros(absent, shift)
        case _Now.ANOTHER_FILE:
            return _readable(_Spans([start], [end]), shift)
        case _Now.NOTHING:
            return _zeros(_Spans([start], [end]), shift)


def _readable(spans: _Spans, shift: int) -> list[Run]:
    offsets = cast("list[FileOffset]", [start + shift for start in spans.starts])
    return list(
        map(Run, offsets, map(sub, spans.ends, spans.starts), cast("list[HostVirtual]", spans.starts))
    )


def _zeros(spans: _Spans, shift: int) -> list[Run]:
    pairs = zip(spans.starts, spans.ends, strict=True)
    return [Run(FileOffset(start + shift), end - start, None) for start, end in pairs if start < end]


def _pieces(mapping: Mapping, now: Iterable[Area]) -> Iterator[tuple[int, int, _Now]]:
    """Cut the mapping up by what is mapped there now; together the pieces are the whole mapping."""
    position = int(mapping.host_start)
    for area in now:
        start, end = max(area.start, position), min(area.end, mapping.host_end)
        if start >= end:
            continue
        if position < start:
            yield position, start, _Now.NOTHING
        in_place = area.file_offset - area.start == mapping.file_offset - mapping.host_start
        if not area.identity.inode:
            yield start, end, _Now.ANONYMOUS
        elif area.identity == mapping.identity and area.private and in_place:
            yield start, end, _Now.THE_FILE
        else:
            yield start, end, _Now.ANOTHER_FILE
        position = end
    if position < mapping.host_end:
        yield position, mapping.host_end, _Now.NOTHING


def _list_by_scan(descriptor: int, start: int, end: int, anonymous_only: bool) -> _Spans:
    vector = (ctypes.c_uint64 * (_REGIONS * _REGION_WORDS))()
    words = memoryview(vector).cast("B").cast("Q")
    # The kernel's page of zeros, in anonymous memory that was only read, is as good as absent.
    inverted = _PAGE_IS_FILE if anonymous_only else _PAGE_IS_PFNZERO
    spans = _Spans([], [])
    count = _REGIONS
    while start < end and count == _REGIONS:
        argument = bytearray(
            _SCAN_ARGUMENT.pack(
                _SCAN_ARGUMENT.size, 0, start, end, 0, ctypes.addressof(vector), _REGIONS, 0,
                inverted, inverted, _PAGE_IS_PRESENT | _PAGE_IS_SWAPPED, 0,
            )
        )  # fmt: skip
        try:
            count = fcntl.ioctl(descriptor, _PAGEMAP_SCAN, argument, True)
        except OSError as error:
            if error.errno in (errno.ENOTTY, errno.EINVAL):
                raise _NoScanError("this kernel has no PAGEMAP_SCAN", hint="Linux 6.7 has it") from error
            raise
        regions = words[: count * _REGION_WORDS].tolist()
        _extend(spans, regions[0::_REGION_WORDS], regions[1::_REGION_WORDS])
        # Not the kernel's own walk_end: once a walk has filled its inner buffer of 512 regions, walk_end
        # stays where that was, even when the walk then finishes; continuing there lists regions twice.
        start = spans.ends[-1] if count else end
    return spans


def _list_by_pagemap(descriptor: int, start: int, end: int, anonymous_only: bool) -> _Spans:
    marks = _MARK_ANONYMOUS if anonymous_only else _MARK_ALL
    spans = _Spans([], [])
    while start < end:
        pages = min((end - start) // PAGE_SIZE_BYTES, _PAGEMAP_CHUNK_PAGES)
        entries = os.pread(descriptor, pages * _ENTRY_BYTES, start // PAGE_SIZE_BYTES * _ENTRY_BYTES)
        if not entries:
            raise ProcessLookupError
        runs = [match.span() for match in _MARKED.finditer(entries[_TOP_BYTE::_ENTRY_BYTES].translate(marks))]
        _extend(
            spans,
            [start + first * PAGE_SIZE_BYTES for first, _ in runs],
            [start + behind * PAGE_SIZE_BYTES for _, behind in runs],
        )
        start += len(entries) // _ENTRY_BYTES * PAGE_SIZE_BYTES
    return spans


def _extend(spans: _Spans, starts: list[int], ends: list[int]) -> None:
    """Append ranges; join a range that a chunk's border cut in two."""
    if spans.ends and starts and spans.ends[-1] == starts[0]:
        spans.ends.pop()
        del starts[0]
    spans.starts.extend(starts)
    spans.ends.extend(ends)
