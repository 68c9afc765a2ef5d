"""The limit on the size of a VMM's files, which the kernel enforces.

One limit holds for all files of a process (RLIMIT_FSIZE, getrlimit(2)): for the guest's console and the VMM's
log, which nobody may be there to cut, and for its disks. So a guest without disks can fill 16 MiB with its
output, and a guest with disks as much as it was given anyway.
"""

from __future__ import annotations

import os
from typing import Final

import msgspec

from ramet.model.record import Disk, Machine
from ramet.system.rlimits import Needs
from ramet.units import GIB, MIB

LARGEST_LOG_BYTES: Final = 16 * MIB
"""Well above what `bounded_log` keeps, so that it is met only when nobody looks."""
# qcow2 needs 8 bytes of mapping and 2 of refcount for each 64 KiB cluster, and a few clusters besides.
_METADATA_DIVISOR: Final = 1024


def largest_file_bytes(machine: Machine, *, log_bytes: int | None = None) -> int:
    """Return the limit for the VMM of that machine, whose logs may have `log_bytes` (`LARGEST_LOG_BYTES`)."""
    if log_bytes is None:
        log_bytes = LARGEST_LOG_BYTES
    largest = max((disk.size_bytes for disk in machine.disks), default=0)
    return max(log_bytes, largest + largest // _METADATA_DIVISOR + MIB if largest else 0)


def with_disk(machine: Machine, disk: Disk) -> Machine:
    """Return that machine with `disk` in the place of its disk of the same name."""
    disks = tuple(disk if own.name == disk.name else own for own in machine.disks)
    return msgspec.structs.replace(machine, disks=disks)


def needs_of(machine: Machine, *, log_bytes: int | None = None) -> Needs:
    """Return what the VMM of that machine must be able to do, regardless of its caller's limits."""
    mapped_bytes = machine.memory_bytes + (_translation_bytes() if machine.accelerator == "tcg" else 0)
    return Needs(file_bytes=largest_file_bytes(machine, log_bytes=log_bytes), mapped_bytes=mapped_bytes)


def _translation_bytes() -> int:
    """Return the address space that an emulating QEMU takes for translated code.

    Source: QEMU 7.2, tcg/region.c, `size_code_gen_buffer`.
    """
    machine_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(GIB, machine_bytes // 8)
