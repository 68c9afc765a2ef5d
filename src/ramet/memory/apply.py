"""Pages applied to the content of a file that has no other user yet. Zeros become holes.

Source: pwritev(2); fallocate(2), FALLOC_FL_PUNCH_HOLE.
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from ramet.errors import UsageError
from ramet.memory.pages import Pages, Stretch
from ramet.memory.process_memory import IOV_MAX
from ramet.system.copying import data_extents
from ramet.system.files import allocated_bytes, filesystem_errors, new_file, punch_hole, write_all
from ramet.system.publishing import publish, sync, temporary_beside
from ramet.system.zeros import ZERO_PAGE
from ramet.units import PAGE_SIZE_BYTES


class MemFile(msgspec.Struct, frozen=True):
    """The facts of a mem-file that has just been published."""

    size_bytes: int
    allocated_bytes: int
    changed_bytes: int
    """Bytes that differed from the base, pages of zeros included."""


@contextmanager
def published(out: Path, what: str, mode: int) -> Iterator[tuple[int, Path]]:
    """Yield a new file to fill (descriptor, temporary path), and publish it durably as `out` at the end (I2).

    After an error the new file is removed; an `OSError` becomes a `FilesystemError`.
    """
    temporary = temporary_beside(out)
    try:
        with filesystem_errors("write", what), new_file(temporary) as file:
            yield file, temporary
            os.fchmod(file, mode)
        publish(temporary, out)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def publish_over(
    out: Path, pages: Pages, size_bytes: int, mode: int, fill: Callable[[int], object], what: str
) -> MemFile:
    """Publish what `fill` puts into an empty file, which then has that size, with the pages over it."""
    with published(out, what, mode) as (file, temporary):
        fill(file)
        apply_pages(file, pages, size_bytes)
        sync(file)
        return MemFile(size_bytes, allocated_bytes(temporary), pages.changed_bytes)


def apply_pages(file: int, pages: Pages, size_bytes: int) -> None:
    """Write the pages into a file of that size, of which zeros become holes.

    Raises `OSError`, `UsageError` when a page lies outside, and what reading the pages raises.
    """
    below = list(data_extents(file))
    writer = GatheringWriter(file)
    for batch in pages.batches():
        for offset, length_bytes, data in batch:
            if offset + length_bytes > size_bytes:
                raise UsageError(f"a changed page lies outside a mem-file of {size_bytes} bytes")
            if data is None:
                _clear(file, offset, length_bytes, below)
            else:
                writer.add(data, offset)
        writer.flush()


class GatheringWriter:
    """A writer that joins neighbouring data into few calls. Flush it before the data is freed."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._parts: list[memoryview] = []
        self._start = 0
        self._end = 0

    def add(self, data: memoryview, offset: int) -> None:
        """Write the data at that offset, now or when flushed. Raises `OSError`."""
        if offset != self._end or len(self._parts) == IOV_MAX:
            self.flush()
            self._start = offset
        self._parts.append(data)
        self._end = offset + len(data)

    def flush(self) -> None:
        """Write what waits. Raises `OSError`."""
        parts, self._parts, start = self._parts, [], self._start
        while parts:
            done = os.pwritev(self._file, parts, start)
            start += done
            while parts and done >= len(parts[0]):
                done -= len(parts.pop(0))
            if done:
                parts[0] = parts[0][done:]
        self._start = self._end


def zeros_over(data: list[tuple[int, int]], stretch: Stretch) -> Iterator[tuple[int, int]]:
    """Yield (start, end), in whole pages, where a stretch of zeros covers data of a file."""
    end = stretch.file_offset + stretch.length_bytes
    behind = stretch.file_offset
    for first, last in data[bisect.bisect_right(data, behind, key=lambda extent: extent[1]) :]:
        if first >= end:
            return
        first = max(first // PAGE_SIZE_BYTES * PAGE_SIZE_BYTES, behind)
        behind = min(-(-last // PAGE_SIZE_BYTES) * PAGE_SIZE_BYTES, end)
        if first < behind:
            yield first, behind


def _clear(file: int, offset: int, length_bytes: int, below: list[tuple[int, int]]) -> None:
    """Make a range zeros where the base has data; its holes are zeros already."""
    for start, end in zeros_over(below, Stretch(offset, length_bytes, None)):
        if not punch_hole(file, start, end - start):
            for position in range(start, end, PAGE_SIZE_BYTES):
                write_all(file, ZERO_PAGE, position)
