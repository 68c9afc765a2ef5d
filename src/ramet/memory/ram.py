"""The place of a guest's RAM in its VMM, and the changes in it.

Ranges are noted once, right after a load or a boot, and kept: a mapping that is mapped over a part of them
later (a balloon, also at an edge) is found by comparing.

A VMM that booted without a mem-file has RAM in anonymous memory. Because of a gap below 4 GiB, larger RAM has
several regions, and their order in memory needn't be that of a mem-file: Firecracker 1.12 puts the upper
region first. The kernel shows neighbours that are alike as one area, and not only regions: the heap of a
VMM's thread may be a part of it. So lengths prove nothing. The ACPI tables that the VMM itself put into low
memory do (`acpi`), and memory that they don't prove isn't taken for RAM.

Sources: Firecracker's `src/vmm/src/arch/x86_64/mod.rs` (`arch_memory_regions`), `src/vmm/src/acpi/mod.rs`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import permutations
from typing import Final, NamedTuple

from ramet.errors import WrongStateError
from ramet.memory.acpi import ANONYMOUS, is_guest_start, starts_within
from ramet.memory.mappings import Area, FileIdentity, Mapping, areas, find_mapping
from ramet.memory.pagemap import Run, changed_runs
from ramet.model.record import RamRange
from ramet.units import FileOffset, HostVirtual

_MOST_REGIONS: Final = 4
_UNPROVED: Final = (
    "`ramet doctor` says which releases of this VMM were run; a guest of at most 3 GiB, or another release,"
    " may do"
)


def locate_ram(pid: int, *, mem: FileIdentity | None, regions: Sequence[int]) -> tuple[RamRange, ...]:
    """Find the guest's RAM in the process, by file offset: all of a mem-file, each byte once.

    With `mem`, the RAM is the private mappings of that file. Without, it is anonymous memory, whose regions
    have the lengths `regions` (bytes) in the order of a mem-file. Call it right after the VMM has loaded or
    booted.

    Raises `WrongStateError` when the place isn't certain, `VmmError` when the process has ended,
    `UnavailableError` when its map can't be read.
    """
    if mem is not None:
        ranges = sorted(
            (
                RamRange(mapping.host_start, mapping.length_bytes, mapping.file_offset)
                for mapping in find_mapping(pid, mem)
            ),
            key=lambda piece: piece.file_offset,
        )
        _require_whole(pid, ranges, sum(regions))
        return tuple(ranges)
    anonymous = [area for area in areas(pid) if area.private and area.writable and area.identity.inode == 0]
    # Areas that hold regions and nothing else, first: a guest's own guest has such tables, too.
    proved = {
        layout
        for layout in _layouts(anonymous, regions)
        if is_guest_start(pid, layout[0].host_start, layout[0].length_bytes)
    } or set(_layouts_inside(pid, anonymous, regions))
    if len(proved) != 1:
        sizes = " and ".join(map(str, regions))
        count = "more than one" if proved else "no"
        raise WrongStateError(
            f"process {pid} has {count} anonymous memory that is proved to be RAM of {sizes} bytes",
            hint=_UNPROVED,
        )
    return proved.pop()


def changed_pages(pid: int, ram: Sequence[RamRange], mem: FileIdentity | None) -> list[Run]:
    """List the pages of those ranges that differ from the mem-file `mem`, unordered; see `changed_runs`.

    Without `mem`, the RAM never had a mem-file: the pages that exist are listed. All others are zeros. The
    process must be paused. Raises as `changed_runs` does.
    """
    identity = mem or ANONYMOUS
    runs = changed_runs(
        pid,
        [
            Mapping(
                HostVirtual(piece.host_start), piece.length_bytes, FileOffset(piece.file_offset), identity
            )
            for piece in ram
        ],
    )
    return runs if mem else [run for run in runs if run.host_start is not None]


def ram_bytes(ram: Sequence[RamRange]) -> int:
    """Return the size of the mem-file that these ranges make up."""
    return sum(piece.length_bytes for piece in ram)


def _require_whole(pid: int, ranges: Sequence[RamRange], expected_bytes: int) -> None:
    behind = 0
    for piece in ranges:
        if piece.file_offset != behind:
            break
        behind += piece.length_bytes
    else:
        if not expected_bytes or behind == expected_bytes:
            return
    raise WrongStateError(f"process {pid} doesn't map the whole mem-file")


def _layouts(anonymous: Sequence[Area], regions: Sequence[int]) -> Iterator[tuple[RamRange, ...]]:
    """Yield every way in which regions of these lengths can lie in areas that hold nothing else.

    The kernel shows neighbours that are alike as one area, so an area may hold several regions, in any order.
    """
    if not 0 < len(regions) <= _MOST_REGIONS:
        return
    offsets = [sum(regions[:index]) for index in range(len(regions))]
    for order in permutations(range(len(regions))):
        yield from _placed(anonymous, regions, offsets, order, ())


def _placed(
    free: Sequence[Area],
    regions: Sequence[int],
    offsets: Sequence[int],
    order: tuple[int, ...],
    placed: tuple[RamRange, ...],
) -> Iterator[tuple[RamRange, ...]]:
    """Fill areas one after the other, upwards, with the regions in that order."""
    if not order:
        yield tuple(sorted(placed, key=lambda piece: piece.file_offset))
        return
    for number, area in enumerate(free):
        position, taken = area.start, []
        for index in order:
            taken.append(RamRange(position, regions[index], offsets[index]))
            position += regions[index]
            if position >= area.end:
                break
        if position == area.end:
            yield from _placed(free[number + 1 :], regions, offsets, order[len(taken) :], (*placed, *taken))


class _Span(NamedTuple):
    """Anonymous memory in which no region has been placed yet."""

    start: int
    end: int


def _layouts_inside(
    pid: int, anonymous: Sequence[Area], regions: Sequence[int]
) -> Iterator[tuple[RamRange, ...]]:
    """Yield layouts in areas that hold something else besides.

    The lowest region is where the guest's tables say. Each other region is in the only free span that it fits
    into, to the byte.
    """
    if not 0 < len(regions) <= _MOST_REGIONS:
        return
    low_bytes = regions[0]
    for area in anonymous:
        for start in starts_within(pid, area.start, area.end, low_bytes):
            low = RamRange(start, low_bytes, 0)
            free = [_Span(span.start, span.end) for span in anonymous if span is not area]
            free += [_Span(area.start, start), _Span(start + low_bytes, area.end)]
            if (others := _others(free, regions)) is not None:
                yield (low, *others)


def _others(free: list[_Span], regions: Sequence[int]) -> list[RamRange] | None:
    """Place the regions above the first.

    None if a region fits nowhere or in several spans, which proves nothing.
    """
    placed, offset = [], regions[0]
    for length in regions[1:]:
        fitting = [span for span in free if span.end - span.start >= length]
        if len(fitting) != 1 or fitting[0].end - fitting[0].start != length:
            return None
        free = [span for span in free if span is not fitting[0]]
        placed.append(RamRange(fitting[0].start, length, offset))
        offset += length
    return placed
