"""Facts about Firecracker's releases: those that were run, and the differences that matter to ramet.

Sources: Firecracker's `src/vmm/src/arch/x86_64/layout.rs` and `mod.rs` (`arch_memory_regions`),
`src/vmm/src/devices/virtio/vsock/device.rs` (`kick`), `docs/snapshotting/snapshot-support.md`, CHANGELOG, at
the tags v1.8.0 to v1.16.1.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from ramet.drivers.interface import Standing
from ramet.drivers.versions import release
from ramet.model.record import RamRegion
from ramet.units import GIB, MIB

OLDEST: Final = (1, 8)
"""The first release with VMGenID, and with devices described by ACPI."""
NETWORK_OVERRIDES_SINCE: Final = (1, 12)
TRACKS_DIRTY_PAGES_SINCE: Final = (1, 13)
"""The first release whose load takes `track_dirty_pages`; before, `enable_diff_snapshots`."""
VSOCK_OVERRIDE_SINCE: Final = (1, 16)

_CLOCK_DEVICE_SINCE: Final = (1, 15)
_MOST_DEVICES: Final = 18
"""Interrupts 5 to 23 (`layout.rs`: `GSI_LEGACY_START`, `GSI_LEGACY_END`), of which VMGenID has one."""
_COMMAND_LINE_BYTES: Final = 2047
_BYTES_OF_A_DEVICE: Final = 36
"""Of the ` virtio_mmio.device=4K@0xc0001000:10` that Firecracker adds for each device."""
_BYTES_ADDED: Final = 8
"""Of ` pci=off`."""

RUN: Final = ("1.12.1", "1.15.1", "1.16.1")
"""The versions that ramet's tests were run with."""
NEWEST_READ: Final = (1, 16)
"""The newest release whose sources were read."""

# After a pause and a resume with no save in between, the vsock device waits for the guest to acknowledge an
# event that it never sent, and gives the guest nothing any more. 1.16.0 and 1.16.1; mended after them.
_DEAFENED_BY_RESUME: Final = (1, 16)
_DEAF_ADVICE: Final = (
    "1.16 deafens a guest's vsock when it is resumed without having been saved: ramet saves its state at each"
    " resume, which cuts connections; 1.15 needs no such thing"
)


class _Gap(NamedTuple):
    """Guest-physical addresses from `start` on that have devices and no RAM."""

    start: int
    end: int


_GAPS: Final[tuple[tuple[tuple[int, int], tuple[_Gap, ...]], ...]] = (
    ((1, 13), (_Gap(3 * GIB, 4 * GIB), _Gap(256 * GIB, 512 * GIB))),
    ((0, 0), (_Gap(3 * GIB + 256 * MIB, 4 * GIB),)),
)
"""By the release from which on they hold, the newest first."""


def ram_regions(memory_bytes: int, numbers: tuple[int, int]) -> tuple[RamRegion, ...]:
    """Return where that release puts a guest's RAM on x86-64.

    In a mem-file, each region follows the region below. A release that wasn't read is taken to do as the
    newest that was; `memory.ram` has it proved.
    """
    gaps = next(gaps for since, gaps in _GAPS if numbers >= since)
    regions, start, offset = [], 0, 0
    for gap in gaps:
        length = min(memory_bytes - offset, gap.start - start)
        regions.append(RamRegion(start, length, offset))
        start, offset = gap.end, offset + length
        if offset == memory_bytes:
            return tuple(regions)
    return (*regions, RamRegion(start, memory_bytes - offset, offset))


def most_devices(numbers: tuple[int, int]) -> int:
    """Return how many virtio devices a machine of that release can have: each has its own interrupt."""
    return _MOST_DEVICES - (1 if numbers >= _CLOCK_DEVICE_SINCE else 0)


def most_argument_bytes(devices: int) -> int:
    """Return how long the kernel arguments of a machine with so many virtio devices can be.

    Firecracker adds its own, and puts no more than 2047 bytes on a command line.
    """
    return _COMMAND_LINE_BYTES - _BYTES_ADDED - _BYTES_OF_A_DEVICE * devices


def machine_type(numbers: tuple[int, int]) -> str:
    """Return the name of the machine that a release makes."""
    return f"firecracker-{numbers[0]}.{numbers[1]}"


def release_of(machine_type: str) -> tuple[int, int] | None:
    """Return the release that makes that machine; None for a name that isn't `machine_type`'s."""
    match = re.fullmatch(r"firecracker-(\d{1,4})\.(\d{1,4})", machine_type)
    return (int(match[1]), int(match[2])) if match else None


def deafens(numbers: tuple[int, int]) -> bool:
    """Tell whether a resume without a save before deafens a guest's vsock."""
    return numbers == _DEAFENED_BY_RESUME


def standing(version: str) -> Standing:
    """Return what is known of that version."""
    numbers = release(version)
    advice = _DEAF_ADVICE if deafens(numbers) else None
    if version in RUN:
        return Standing(True, "run", advice)
    names = ", ".join(RUN)
    if re.fullmatch(r"\d+\.\d+\.\d+", version) is None:
        words = f"untried: no release; {names} were run"
    elif numbers > NEWEST_READ:
        newest = f"{NEWEST_READ[0]}.{NEWEST_READ[1]}"
        words = f"untried: newer than any whose sources were read ({newest}); {names} were run"
    else:
        words = f"untried, layout as in its sources; {names} were run"
    return Standing(False, words, advice)
