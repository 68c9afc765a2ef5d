"""Changed pages of a VMM, on their way to a file.

Buffered pages are copied into ramet's memory while the guest is paused, and examined and written after it has
been resumed. Live pages are read as they are written, for a VMM of any size that ends afterwards.

Everything here may run in a worker thread.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from itertools import accumulate
from types import TracebackType
from typing import Final, NamedTuple, Protocol, Self

from ramet.errors import UnavailableError
from ramet.memory.accounting import available_bytes
from ramet.memory.pagemap import Run
from ramet.memory.process_memory import address_of, read_memory
from ramet.system.zeros import ZERO_PAGE
from ramet.units import KIB, MIB, PAGE_SIZE_BYTES, format_bytes

BUFFER_BYTES: Final = 4 * MIB
_WINDOW_BYTES: Final = 64 * KIB
_HUGE_PAGE_BYTES: Final = 2 * MIB
_HUGE_FROM_BYTES: Final = 512 * KIB
_ASK_FROM_BYTES: Final = 64 * MIB
_FREE_SOME: Final = "free some memory: `ramet stats` says what each instance uses"
_ZERO_WINDOW: Final = bytes(_WINDOW_BYTES)


class Stretch(NamedTuple):
    """Neighbouring pages of a mem-file. `data` is None where all of them are zeros."""

    file_offset: int
    length_bytes: int
    data: memoryview | None


class Pages(Protocol):
    """Pages that a process changed, by file offset, none of them twice."""

    @property
    def changed_bytes(self) -> int:
        """Number of changed bytes, zeros included."""

    def batches(self) -> Iterator[list[Stretch]]:
        """Yield the pages, ascending. The bytes of a batch are valid until the next batch is requested."""


class BufferedPages:
    """Pages in anonymous memory of this process, gone when ramet dies. Made by `buffer_pages`.

    A context manager: leaving, or `close`, gives the memory back.
    """

    def __init__(self, pieces: list[tuple[int, int, int | None]], memory: mmap.mmap | None) -> None:
        self._pieces = pieces
        self._memory = memory

    @property
    def changed_bytes(self) -> int:
        """Number of changed bytes, zeros included."""
        return sum(length for _, length, _ in self._pieces)

    @property
    def buffered_bytes(self) -> int:
        """Memory that the buffered pages take."""
        return len(self._memory) if self._memory is not None else 0

    def batches(self) -> Iterator[list[Stretch]]:
        """Yield the pages in batches (`Pages.batches`). Pages of zeros are recognised here."""
        batch: list[Stretch] = []
        length = 0
        for file_offset, length_bytes, position in sorted(self._pieces):
            if position is None:
                batch.append(Stretch(file_offset, length_bytes, None))
                continue
            assert self._memory is not None, "they have been closed"
            with memoryview(self._memory) as view:
                batch += stretches(view[position : position + length_bytes], file_offset)
            length += length_bytes
            if length >= BUFFER_BYTES:
                yield batch
                batch, length = [], 0
        if batch:
            yield batch

    def close(self) -> None:
        """Free the memory. More calls do nothing."""
        memory, self._memory, self._pieces = self._memory, None, []
        if memory is not None:
            try:
                memory.close()
            except BufferError:
                pass  # a view still exists: the memory is freed with the last view

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def buffer_pages(pid: int, runs: Sequence[Run]) -> BufferedPages:
    """Copy a paused process's pages in `runs` into ramet's memory, which is as large as the runs.

    This is the work between a pause and a resume, so it does nothing else. Raises `UnavailableError` when
    there isn't enough memory, or the kernel doesn't permit reading; `VmmError` when the process has ended;
    `WrongStateError` when its memory isn't as listed. Nothing is kept then.
    """
    read = [run for run in runs if run.host_start is not None]
    lengths = [run.length_bytes for run in read]
    positions = [0, *accumulate(lengths)]
    pieces: list[tuple[int, int, int | None]] = [
        (run.file_offset, run.length_bytes, position) for run, position in zip(read, positions, strict=False)
    ]
    if len(read) < len(runs):
        pieces += [(run.file_offset, run.length_bytes, None) for run in runs if run.host_start is None]
    if not read:
        return BufferedPages(pieces, None)
    memory = _memory(positions[-1])
    try:
        read_memory(pid, [run.host_start or 0 for run in read], lengths, address_of(memory))
    except BaseException:
        memory.close()
        raise
    return BufferedPages(pieces, memory)


class LivePages:
    """Pages read from a process while they are asked for, through a buffer of 4 MiB.

    The process is paused from before its changes were listed until the last page was had. `batches` raises
    as `buffer_pages` does.
    """

    def __init__(self, pid: int, runs: Sequence[Run]) -> None:
        self._pid = pid
        self._runs = sorted(runs, key=lambda run: run.file_offset)

    @property
    def changed_bytes(self) -> int:
        """Number of changed bytes, zeros included."""
        return sum(run.length_bytes for run in self._runs)

    def batches(self) -> Iterator[list[Stretch]]:
        """Yield the pages in batches (`Pages.batches`), each read from the process when requested."""
        buffer = bytearray(BUFFER_BYTES)
        whole = memoryview(buffer)
        address = address_of(buffer)
        for group in _groups(self._runs):
            read = [piece for piece in group if piece.host_start is not None]
            read_memory(
                self._pid,
                [piece.host_start or 0 for piece in read],
                [piece.length_bytes for piece in read],
                address,
            )
            batch: list[Stretch] = []
            position = 0
            for piece in group:
                if piece.host_start is None:
                    batch.append(Stretch(piece.file_offset, piece.length_bytes, None))
                else:
                    batch += stretches(whole[position : position + piece.length_bytes], piece.file_offset)
                    position += piece.length_bytes
            yield batch


class _Piece(NamedTuple):
    file_offset: int
    length_bytes: int
    host_start: int | None


def _groups(runs: Sequence[Run]) -> Iterator[list[_Piece]]:
    """Group the runs so that the bytes to read per group fit in the buffer; long runs are cut."""
    group: list[_Piece] = []
    room = BUFFER_BYTES
    for run in runs:
        if run.host_start is None:
            group.append(_Piece(run.file_offset, run.length_bytes, None))
            continue
        done = 0
        while done < run.length_bytes:
            length = min(run.length_bytes - done, room)
            group.append(_Piece(run.file_offset + done, length, run.host_start + done))
            done += length
            room -= length
            if room == 0:
                yield group
                group, room = [], BUFFER_BYTES
    if group:
        yield group


def stretches(view: memoryview, file_offset: int) -> Iterator[Stretch]:
    """Yield the longest stretches of whole pages that are all zeros or all not zeros."""
    begun, kind = 0, False
    for position, is_zero in _kinds(view):
        if position == 0:
            kind = is_zero
        elif is_zero != kind:
            yield Stretch(file_offset + begun, position - begun, None if kind else view[begun:position])
            begun, kind = position, is_zero
    if len(view) > begun:
        yield Stretch(file_offset + begun, len(view) - begun, None if kind else view[begun:])


def _kinds(view: memoryview) -> Iterator[tuple[int, bool]]:
    """Yield (position, all zeros?) for each page, or once for a whole window of zeros."""
    for start in range(0, len(view), _WINDOW_BYTES):
        # bytes compare and search within themselves at memcmp's speed, views don't.
        window = view[start : start + _WINDOW_BYTES].tobytes()
        if window == _ZERO_WINDOW:
            yield start, True
            continue
        for position in range(0, len(window), PAGE_SIZE_BYTES):
            yield start + position, window.startswith(ZERO_PAGE, position)


def _memory(length_bytes: int) -> mmap.mmap:
    if length_bytes >= _ASK_FROM_BYTES and length_bytes > (free := available_bytes()):
        raise UnavailableError(
            f"copying {format_bytes(length_bytes)} of changed pages needs more memory than the"
            f" {format_bytes(free)} that are free",
            hint=_FREE_SOME,
        )
    # One fault for a huge page instead of 512: quicker even where a quarter of it is used.
    huge = length_bytes >= _HUGE_FROM_BYTES
    rounded = -(-length_bytes // _HUGE_PAGE_BYTES) * _HUGE_PAGE_BYTES
    try:
        memory = mmap.mmap(-1, rounded if huge else length_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise UnavailableError(
            f"no memory for {format_bytes(length_bytes)} of changed pages: {error.strerror}", hint=_FREE_SOME
        ) from error
    if huge:
        try:
            memory.madvise(mmap.MADV_HUGEPAGE)
        except (OSError, AttributeError):
            pass  # this kernel has none
    return memory
