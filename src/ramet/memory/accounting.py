"""The cost of a process's memory: its own pages, and its share of the pages that others map too.

Source: Documentation/filesystems/proc.rst §1.1 (smaps, smaps_rollup).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from ramet.errors import UnavailableError
from ramet.memory.mappings import FileIdentity, Mapping
from ramet.memory.pagemap import changed_runs_by_scan
from ramet.memory.procfs import read_proc
from ramet.model.record import RamRange
from ramet.system import cgroups
from ramet.units import KIB, FileOffset, HostVirtual

_FIELDS: Final = {
    b"Pss:": "pss_bytes",
    b"Private_Dirty:": "private_dirty_bytes",
    b"Shared_Clean:": "shared_bytes",
    b"Shared_Dirty:": "shared_bytes",
    b"Rss:": "rss_bytes",
    b"Swap:": "swap_bytes",
}


_HEAD: Final = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) ", re.MULTILINE)


class MemoryUse(msgspec.Struct, frozen=True):
    """Memory of a process, or of a part of its address space, as the kernel counts it."""

    pss_bytes: int = 0
    """The process's own pages, and the n-th part of each page that n processes map."""
    private_dirty_bytes: int = 0
    """Pages that the process changed and no other process has: the cost of a fork."""
    shared_bytes: int = 0
    """Pages that the process and others map, counted in full."""
    rss_bytes: int = 0
    """Resident pages of the process, counted in full."""
    swap_bytes: int = 0
    """Changed pages that the kernel has swapped out; no figure above includes them."""


def smaps_rollup(pid: int) -> MemoryUse:
    """Measure the memory of a whole process (Linux ≥ 4.14).

    Raises `VmmError` when the process has ended, `UnavailableError` when the kernel doesn't tell.
    """
    return _sum(read_proc(pid, "smaps_rollup", "count the memory").splitlines())


def mapping_use(pid: int, ram: Sequence[RamRange | Mapping]) -> MemoryUse:
    """Measure the memory within these ranges alone, a VMM's guest RAM. Raises as `smaps_rollup` does.

    Memory that was mapped over a part of the ranges later (a balloon) is counted too. All figures are zero
    when nothing is mapped there.
    """
    text = read_proc(pid, "smaps", "count the memory")
    # Every area begins with its line of /proc/PID/maps; its figures follow, a line each. A VMM has a hundred
    # areas, of which one or two are its guest's: only those are taken apart.
    heads = [(head.start(), int(head[1], 16), int(head[2], 16)) for head in _HEAD.finditer(text)]
    ends = [position for position, _, _ in heads[1:]] + [len(text)]
    inside = [
        line
        for (position, start, end), behind in zip(heads, ends, strict=True)
        if any(piece.host_start < end and start < piece.host_start + piece.length_bytes for piece in ram)
        for line in text[position:behind].splitlines()[1:]
    ]
    return _sum(inside)


def private_bytes(pid: int, ram: Sequence[RamRange], mem: FileIdentity) -> int:
    """Measure the guest RAM that is the process's own: the pages in which it differs from the mem-file `mem`.

    The kernel's list of these pages takes a fifth of the time of `mapping_use`, and less memory to walk.
    Raises as `smaps_rollup` does.
    """
    mapped = [
        Mapping(HostVirtual(piece.host_start), piece.length_bytes, FileOffset(piece.file_offset), mem)
        for piece in ram
    ]
    try:
        return sum(run.length_bytes for run in changed_runs_by_scan(pid, mapped))
    except UnavailableError:
        return mapping_use(pid, ram).private_dirty_bytes  # Linux before 6.7


def _sum(lines: Iterable[bytes]) -> MemoryUse:
    total = dict.fromkeys(_FIELDS.values(), 0)
    for line in lines:
        words = line.split(None, 2)
        if field := _FIELDS.get(words[0]):
            total[field] += int(words[1]) * KIB
    return MemoryUse(**total)


def total_bytes() -> int:
    """Return the memory that all guests together can have: the machine's, or a cgroup's smaller limit."""
    return cgroups.memory().total_bytes


def available_bytes() -> int:
    """Return the memory that can be allocated without swapping.

    It is the smallest of the kernel's own estimate (proc(5), MemAvailable) and the room left in each cgroup
    that this process is in.
    """
    return cgroups.memory().available_bytes
