"""Where a VMM has its guest's RAM, and what changed in it.

Ranges are noted once, right after a load or a boot, and kept: what is mapped over a part of them later (a
balloon, also one at an edge) is found by comparing.

A VMM that booted without a mem-file has RAM in anonymous memory. Above a gap below 4 GiB RAM has several
regions, and they needn't lie in the order in which a mem-file has them: Firecracker 1.12 puts the upper one
first. Nothing that the kernel tells about the process shows which is which; what the VMM itself put into low
memory does.

Sources: Firecracker's `src/vmm/src/arch/x86_64/mod.rs` (`arch_memory_regions`); ACPI 6.5 §5.2.5.1, "Finding
the RSDP on IA-PC Systems", and §5.2.5.3, its structure.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from itertools import permutations
from typing import Final

from ramet.errors import WrongStateError
from ramet.memory.mappings import Area, FileIdentity, Mapping, areas, find_mapping
from ramet.memory.pagemap import Run, changed_runs
from ramet.memory.transfer import read_memory
from ramet.model.record import RamRange
from ramet.units import KIB, FileOffset, HostVirtual

_ANONYMOUS: Final = FileIdentity(0, 0)
_MOST_REGIONS: Final = 4
_RSDP_START: Final = 0xE0000
_RSDP_AREA_BYTES: Final = 128 * KIB
_RSDP_ALIGNMENT: Final = 16
_RSDP_BYTES: Final = 20  # of its first version, which the first checksum covers
_RSDP_SIGNATURE: Final = b"RSD PTR "


def locate_ram(pid: int, *, mem: FileIdentity | None, regions: Sequence[int]) -> tuple[RamRange, ...]:
    """Where the process has its guest's RAM, by file offset; all of a mem-file, each byte once.

    With `mem`, the private mappings of that file. Without, anonymous memory, whose regions have the lengths
    `regions` (bytes) in the order of a mem-file. Call it right after the VMM has loaded or booted.

    Raises `WrongStateError` when it can't be told for sure, `VmmError` when the process has ended,
    `UnavailableError` when its map can't be read.
    """
    if mem is not None:
        ranges = sorted(
            (RamRange(one.host_start, one.length_bytes, one.file_offset) for one in find_mapping(pid, mem)),
            key=lambda one: one.file_offset,
        )
        _require_whole(pid, ranges, sum(regions))
        return tuple(ranges)
    layouts = set(_layouts(list(areas(pid)), regions))
    if len(layouts) > 1:
        layouts = {layout for layout in layouts if _has_rsdp(pid, layout[0])}
    if len(layouts) != 1:
        sizes = " and ".join(map(str, regions))
        found = "no" if not layouts else "more than one"
        raise WrongStateError(f"process {pid} has {found} anonymous memory that can be RAM of {sizes} bytes")
    return layouts.pop()


def changed_pages(pid: int, ram: Sequence[RamRange], mem: FileIdentity | None) -> list[Run]:
    """What in those ranges differs from the mem-file `mem`, in no particular order; see `changed_runs`.

    With None, RAM that never had a mem-file: what is there at all. What isn't there is zeros, and isn't
    listed. The process must be paused. Raises as `changed_runs` does.
    """
    identity = mem or _ANONYMOUS
    runs = changed_runs(
        pid,
        [
            Mapping(HostVirtual(one.host_start), one.length_bytes, FileOffset(one.file_offset), identity)
            for one in ram
        ],
    )
    return runs if mem else [run for run in runs if run.host_start is not None]


def ram_bytes(ram: Sequence[RamRange]) -> int:
    """The size of the mem-file that these ranges make up."""
    return sum(one.length_bytes for one in ram)


def _require_whole(pid: int, ranges: Sequence[RamRange], expected_bytes: int) -> None:
    behind = 0
    for one in ranges:
        if one.file_offset != behind:
            break
        behind += one.length_bytes
    else:
        if not expected_bytes or behind == expected_bytes:
            return
    raise WrongStateError(f"process {pid} doesn't map the whole mem-file")


def _layouts(now: Sequence[Area], regions: Sequence[int]) -> Iterator[tuple[RamRange, ...]]:
    """Every way in which regions of these lengths can lie in anonymous areas that hold nothing else.

    The kernel shows neighbours that are alike as one area, so one may hold several, in any order.
    """
    if not 0 < len(regions) <= _MOST_REGIONS:
        return
    anonymous = [area for area in now if area.private and area.writable and area.identity.inode == 0]
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
        yield tuple(sorted(placed, key=lambda one: one.file_offset))
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


def _has_rsdp(pid: int, low: RamRange) -> bool:
    """Whether the tables that a VMM makes for its guest are where they would be if this were low memory."""
    if low.length_bytes < _RSDP_START + _RSDP_AREA_BYTES:
        return False
    buffer = ctypes.create_string_buffer(_RSDP_AREA_BYTES)
    read_memory(pid, [low.host_start + _RSDP_START], [_RSDP_AREA_BYTES], ctypes.addressof(buffer))
    content = buffer.raw
    position = content.find(_RSDP_SIGNATURE)
    while position >= 0:
        table = content[position : position + _RSDP_BYTES]
        if position % _RSDP_ALIGNMENT == 0 and len(table) == _RSDP_BYTES and sum(table) % 256 == 0:
            return True
        position = content.find(_RSDP_SIGNATURE, position + 1)
    return False
