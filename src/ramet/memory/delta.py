"""Deltas: the pages in which a capture differs from its base.

Written, applied to a fork, merged with the base.

Each call returns when its file is durable (a temporary name, fsync, rename, fsync of the directory), so call
it after the guest has been resumed. Published files are never written to (I1). Everything here may run in a
worker thread.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from ramet.errors import DamagedError, WrongStateError
from ramet.memory.apply import GatheringWriter, MemFile, publish_over, published, zeros_over
from ramet.memory.delta_format import TRAILER_BYTES, Delta, DeltaFacts, Index, open_delta
from ramet.memory.pages import BUFFER_BYTES, Pages, Stretch
from ramet.memory.process_memory import address_of, write_memory
from ramet.memory.ram import ram_bytes
from ramet.model.record import RamRange
from ramet.system.copying import data_extents, duplicate_into
from ramet.system.files import filesystem_errors, open_regular
from ramet.units import MIB

__all__ = [
    "COMPACT_ABOVE_BYTES",
    "DeltaFacts",
    "MemFile",
    "apply_delta",
    "compact",
    "open_delta",
    "write_delta",
    "write_mem_file",
    "write_merged",
]

COMPACT_ABOVE_BYTES: Final = 8 * MIB
"""Limit of the bytes that each fork writes (`DeltaFacts.applied_bytes`): a larger delta is to be merged.

Measured: for each MiB a fork pays 1 MiB of private memory and 0.5 (neighbours) to 2.0 ms (scattered pages),
so at this limit as much time as a fork takes without a delta (12-16 ms under Firecracker). Every capture of
the fork copies these pages once more in its pause, 0.3-0.5 ms for each MiB. Compaction takes 1.1 ms for each
MiB of base and delta without reflinks, once, in the background, and as much room on disk.
"""

_ZEROS_BYTES: Final = 2 * MIB


def write_delta(
    path: Path, pages: Pages, *, memory_bytes: int, mode: int = 0o444, base: Path | None = None
) -> DeltaFacts:
    """Publish `path` with those pages of a mem-file of `memory_bytes`; pages of zeros take 8 bytes per run.

    With `base`, the mem-file below the delta, zeros that are holes in `base` aren't written: the result is
    the same, and a fork doesn't need them.

    Raises `FilesystemError`, and what reading the pages raises; then `path` is unchanged.
    """
    extents = None if base is None else _extents(base)
    index = Index()
    with published(path, str(path), mode) as (file, _):
        writer = GatheringWriter(file)
        position = 0
        for batch in pages.batches():
            for stretch in batch:
                if stretch.data is not None:
                    index.add(stretch.file_offset, stretch.length_bytes, zeros=False)
                    writer.add(stretch.data, position)
                    position += stretch.length_bytes
                elif extents is None:
                    index.add(stretch.file_offset, stretch.length_bytes, zeros=True)
                else:
                    for start, end in zeros_over(extents, stretch):
                        index.add(start, end - start, zeros=True)
            writer.flush()
        behind, facts = index.finish(memory_bytes)
        writer.add(memoryview(behind), position)
        writer.flush()
    return facts


def apply_delta(source: Path | int, pid: int, ram: Sequence[RamRange]) -> DeltaFacts:
    """Write a delta into the RAM of a process that has its base mapped privately.

    Call it before anything reads the RAM. The pages become the process's own, and a capture of the process
    lists them again.

    `source` is a path or a descriptor. Raises `DamagedError` when it isn't a delta for this RAM (then nothing
    was written), `WrongStateError` when the RAM isn't mapped there, `VmmError` when the process has ended,
    `UnavailableError` when the kernel doesn't permit it, `FilesystemError`. After these errors the process
    has a part of the delta and can't be used.
    """
    with open_delta(source, ram_bytes(ram)) as delta:
        data: tuple[list[int], list[int]] = [], []
        zeros: tuple[list[int], list[int]] = [], []
        for run in delta.runs():
            starts, lengths = zeros if run.data_offset is None else data
            for start, length in _addresses(ram, run.file_offset, run.length_bytes):
                starts.append(start)
                lengths.append(length)
        if data[0]:
            with _mapped(delta) as content:
                # The kernel reads it: a file that is cut short meanwhile is an error, not a signal.
                write_memory(pid, *data, address_of(content))
        if zeros[0]:
            _write_zeros(pid, *zeros)
    return delta.facts


def _addresses(ram: Sequence[RamRange], file_offset: int, length_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield (host address, length) for a range of the mem-file, which may lie in several pieces."""
    end = file_offset + length_bytes
    covered_bytes = 0
    for piece in ram:
        start, stop = max(file_offset, piece.file_offset), min(end, piece.file_offset + piece.length_bytes)
        if start < stop:
            yield piece.host_start + start - piece.file_offset, stop - start
            covered_bytes += stop - start
    if covered_bytes != length_bytes:
        raise WrongStateError(f"the RAM has no bytes {file_offset} to {end}")


def _write_zeros(pid: int, starts: list[int], lengths: list[int]) -> None:
    with mmap.mmap(-1, _ZEROS_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as zeros:
        address = address_of(zeros)
        group: tuple[list[int], list[int]] = [], []
        room = _ZEROS_BYTES
        for start, length in zip(starts, lengths, strict=True):
            while length:
                piece = min(length, room)
                group[0].append(start)
                group[1].append(piece)
                start, length, room = start + piece, length - piece, room - piece
                if not room:
                    write_memory(pid, *group, address)
                    group, room = ([], []), _ZEROS_BYTES
        write_memory(pid, *group, address)


def compact(base: Path, delta: Path, out: Path, *, mode: int = 0o444) -> MemFile:
    """Publish `out`, a mem-file with the content of `base` and the delta applied.

    The delta's zeros become holes. `base` is reflinked, or copied with its holes. Neither `base` nor the
    delta is written to.

    Raises `DamagedError` when the delta doesn't belong to `base`, `FilesystemError`; then `out` is unchanged.
    """
    with filesystem_errors("read", base), open_regular(base) as origin:
        size = os.fstat(origin).st_size
        with open_delta(delta, size) as changes:
            return publish_over(
                out,
                _DeltaPages(changes),
                size,
                mode,
                lambda file: duplicate_into(origin, file),
                f"{base} and {delta} to {out}",
            )


def write_merged(out: Path, base: Path, pages: Pages, *, mode: int = 0o444) -> MemFile:
    """Publish `out`, a mem-file with the content of `base` and the pages over it. `base` isn't written to.

    `base` is reflinked, or copied with its holes. Raises as `write_mem_file`.
    """
    with filesystem_errors("read", base), open_regular(base) as origin:
        size = os.fstat(origin).st_size
        return publish_over(
            out, pages, size, mode, lambda file: duplicate_into(origin, file), f"{base} to {out}"
        )


def write_mem_file(path: Path, pages: Pages, *, memory_bytes: int, mode: int = 0o444) -> MemFile:
    """Publish a mem-file for pages that have no base. All other pages are zeros, and zeros are holes.

    Raises `FilesystemError`, `UsageError` when a page lies outside, and what reading the pages raises; then
    `path` is unchanged.
    """
    return publish_over(
        path, pages, memory_bytes, mode, lambda file: os.ftruncate(file, memory_bytes), str(path)
    )


class _DeltaPages:
    """A delta's pages, read through a bounded buffer."""

    def __init__(self, delta: Delta) -> None:
        self._delta = delta
        self.changed_bytes = delta.facts.applied_bytes

    def batches(self) -> Iterator[list[Stretch]]:
        """Yield the delta's pages in batches (`Pages.batches`), a long run in several stretches."""
        buffer = memoryview(bytearray(BUFFER_BYTES))
        batch: list[Stretch] = []
        filled = 0
        for offset, length, position in self._delta.runs():
            if position is None:
                batch.append(Stretch(offset, length, None))
                continue
            done = 0
            while done < length:
                part = buffer[filled : filled + min(length - done, BUFFER_BYTES - filled)]
                _read_fully(self._delta, part, position + done)
                batch.append(Stretch(offset + done, len(part), part))
                done, filled = done + len(part), filled + len(part)
                if filled == BUFFER_BYTES:
                    yield batch
                    batch, filled = [], 0
        if batch:
            yield batch


def _read_fully(delta: Delta, view: memoryview, offset: int) -> None:
    done = 0
    while done < len(view):
        got = os.preadv(delta.descriptor, [view[done:]], offset + done)
        if not got:
            raise DamagedError(f"{delta.name} shrank while it was read", hint="make the capture again")
        done += got


def _mapped(delta: Delta) -> mmap.mmap:
    # Private and writable only because ctypes has no addresses of read-only memory.
    size = delta.facts.data_bytes + TRAILER_BYTES
    with filesystem_errors("read", delta.name):
        return mmap.mmap(delta.descriptor, size, access=mmap.ACCESS_COPY)


def _extents(path: Path) -> list[tuple[int, int]]:
    with filesystem_errors("read", path), open_regular(path) as descriptor:
        return list(data_extents(descriptor))
