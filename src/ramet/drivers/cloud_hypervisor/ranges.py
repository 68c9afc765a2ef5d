"""The delta of a restore, as Cloud Hypervisor reads it: ranges in `state.json`, and their data back to back.

`memory-ranges` has no header: a range's data begins where the data of the ranges before it ends. That is the
beginning of a delta, whose data lies there in the order of its runs; what follows is never read. So the file
can be the delta itself, unless the delta has

- runs of zeros, which have no data there;
- holes in its data, which a filesystem may make of zeros: Cloud Hypervisor skips holes, so the base would
  show through, and takes the end of a file that is too short for a hole (both in silence, seen with 53.0);
- too many runs: `MOST_RANGES`.

Then a file in memory is written, with real zeros, and with the base's pages between the nearest runs.

Nearby pages aren't taken along otherwise. Measured with 53.0, restores of 512 MiB, medians of five: 12,000
one-page runs with one page between them take 107 ms as they are and 246 ms as one run, of which each page is
read and copied; with three pages between, 72 and 392 ms; 1,000 runs 11 and 22 ms. A range costs 6 to 9 us, so
closing a gap never pays, and its pages would be the fork's own.

Source: Cloud Hypervisor's `vmm/src/memory_manager.rs` (`fill_saved_regions`), at v53.0.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

from ramet.drivers.cloud_hypervisor.state import GuestRange
from ramet.drivers.vmstate_files import path_of
from ramet.errors import DamagedError
from ramet.model.record import DeltaRun, RamRegion
from ramet.system.copying import data_extents
from ramet.system.files import filesystem_errors, open_regular, write_all
from ramet.system.memfile import memory_file
from ramet.units import MIB

MOST_RANGES: Final = 65_536
"""The longest list of ranges: `state.json` has 40 bytes per range."""
_BUFFER_BYTES: Final = MIB
_AGAIN: Final = "make the capture again"


class Span(NamedTuple):
    """A part of a mem-file."""

    file_offset: int
    length_bytes: int

    @property
    def end(self) -> int:
        """The first offset behind the span."""
        return self.file_offset + self.length_bytes


class Source(NamedTuple):
    """A `memory-ranges`: its ranges, and a path by which a VMM of this user opens the file."""

    ranges: tuple[GuestRange, ...]
    path: str
    data_bytes: int


@contextmanager
def delta_source(
    delta_fd: int,
    runs: Sequence[DeltaRun],
    mem: Path,
    regions: Sequence[RamRegion],
    *,
    most: int = MOST_RANGES,
) -> Iterator[Source]:
    """Yield the `memory-ranges` of a delta over the mem-file `mem`; the file is there inside.

    `runs` are the delta's, ascending, and their data is in `delta_fd`. Raises `DamagedError` for a run
    outside of the RAM or data that isn't there, `FilesystemError`.
    """
    spans = [Span(run.file_offset, run.length_bytes) for run in runs]
    data_bytes = sum(run.length_bytes for run in runs if run.data_offset is not None)
    if len(spans) <= most and _is_laid_out(runs) and is_all_data(delta_fd, data_bytes):
        yield Source(tuple(guest_ranges(spans, regions)), path_of(delta_fd), data_bytes)
        return
    spans = merged(spans, most=most)
    ranges = guest_ranges(spans, regions)
    with memory_file("memory-ranges") as file:
        written_bytes = _write(file, delta_fd, runs, spans, mem)
        if not is_all_data(file, written_bytes):
            raise DamagedError(f"the delta over {mem} couldn't be laid out for the VMM: it has holes")
        yield Source(tuple(ranges), path_of(file), written_bytes)


def _is_laid_out(runs: Sequence[DeltaRun]) -> bool:
    """Tell whether the data of all runs lies back to back from the file's beginning."""
    behind = 0
    for run in runs:
        if run.data_offset != behind:
            return False
        behind += run.length_bytes
    return True


def merged(spans: Sequence[Span], *, most: int = MOST_RANGES) -> list[Span]:
    """Return at most `most` spans that contain the given ones, which ascend and don't overlap.

    The smallest gaps are closed, and no more of them than have to be.
    """
    if len(spans) <= most:
        return list(spans)
    gaps = [after.file_offset - before.end for before, after in pairwise(spans)]
    smallest = set(sorted(range(len(gaps)), key=gaps.__getitem__)[: len(spans) - most])
    joined = [spans[0]]
    for number, span in enumerate(spans[1:]):
        last = joined[-1]
        if number in smallest:
            joined[-1] = Span(last.file_offset, span.end - last.file_offset)
        else:
            joined.append(span)
    return joined


def guest_ranges(spans: Iterable[Span], regions: Sequence[RamRegion]) -> list[GuestRange]:
    """Return where the guest sees those parts of its mem-file, in their order: split where regions meet.

    Raises `DamagedError` for a part that is outside.
    """
    ranges = []
    for span in spans:
        covered_bytes = 0
        for region in regions:
            start = max(span.file_offset, region.file_offset)
            end = min(span.end, region.file_offset + region.length_bytes)
            if start < end:
                ranges.append(GuestRange(region.guest_start + start - region.file_offset, end - start))
                covered_bytes += end - start
        if covered_bytes != span.length_bytes:
            raise DamagedError(f"the RAM has no bytes {span.file_offset} to {span.end}", hint=_AGAIN)
    return ranges


def is_all_data(descriptor: int, length_bytes: int) -> bool:
    """Tell whether a file's first `length_bytes` are there and have no hole (SEEK_HOLE, lseek(2))."""
    behind = 0
    if os.fstat(descriptor).st_size < length_bytes:
        return False
    for start, end in data_extents(descriptor, length_bytes):
        if start != behind:
            return False
        behind = end
    return behind == length_bytes


def _write(file: int, delta_fd: int, runs: Sequence[DeltaRun], spans: Sequence[Span], mem: Path) -> int:
    """Write the spans' content to a file in memory, back to back, and return its length."""
    position, remaining = 0, iter(runs)
    with filesystem_errors("read", mem), open_regular(mem) as base:
        for span in spans:
            behind = span.file_offset
            for run in _within(remaining, span):
                position = _copy(file, position, base, behind, run.file_offset - behind, mem)
                if run.data_offset is None:
                    position = _zero(file, position, run.length_bytes)
                else:
                    position = _copy(
                        file, position, delta_fd, run.data_offset, run.length_bytes, f"the delta over {mem}"
                    )
                behind = run.file_offset + run.length_bytes
    return position


def _within(runs: Iterator[DeltaRun], span: Span) -> Iterator[DeltaRun]:
    """Take the next runs, up to the span's last. A span ends with a run."""
    for run in runs:
        yield run
        if run.file_offset + run.length_bytes == span.end:
            return


def _copy(file: int, position: int, source: int, offset: int, length_bytes: int, name: object) -> int:
    while length_bytes:
        piece = os.pread(source, min(length_bytes, _BUFFER_BYTES), offset)
        if not piece:
            raise DamagedError(f"{name} shrank while it was read", hint=_AGAIN)
        write_all(file, piece, position)
        position, offset, length_bytes = position + len(piece), offset + len(piece), length_bytes - len(piece)
    return position


def _zero(file: int, position: int, length_bytes: int) -> int:
    zeros = memoryview(bytes(min(length_bytes, _BUFFER_BYTES)))
    while length_bytes:
        piece = zeros[:length_bytes]
        write_all(file, piece, position)
        position, length_bytes = position + len(piece), length_bytes - len(piece)
    return position
