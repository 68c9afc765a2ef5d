"""Facts about Cloud Hypervisor's releases: those that were run, and what a snapshot needs of them.

Sources: Cloud Hypervisor's `docs/releases.md` (snapshots aren't compatible across major versions) and
`arch/src/x86_64/mod.rs` (`arch_memory_regions`), at the tag v53.0.
"""

from __future__ import annotations

import re
from typing import Final

from ramet.drivers.interface import Standing
from ramet.drivers.versions import is_pre_release, release
from ramet.model.record import RamRegion
from ramet.units import GIB

OLDEST: Final = (53, 0)
"""The first release that drains block I/O when it pauses a guest.

Before, an asynchronous request could still write guest RAM and the disk of a paused guest.
"""
RUN: Final = ("53.0",)
"""The versions that ramet's tests were run with. One that was built without git calls itself 53.0.0."""
NEWEST_READ: Final = (53, 0)
"""The newest release whose sources were read."""

_LOW_BYTES: Final = 3 * GIB
_HIGH_START: Final = 4 * GIB


def machine_type(version: str) -> str:
    """Return the name of the machine that a release makes: releases of one major version make the same."""
    return f"cloud-hypervisor-{major(version)}"


def major(version: str) -> int:
    """Return the major version: a snapshot is restored by the same one."""
    return release(version)[0]


def is_compatible(version: str, other: str) -> bool:
    """Tell whether a VMM of one version loads the vmstate of the other: within a major version.

    A pre-release is compatible only with the very same version.
    """
    if is_pre_release(version) or is_pre_release(other):
        return version == other
    return major(version) == major(other)


def ram_regions(memory_bytes: int) -> tuple[RamRegion, ...]:
    """Return where a guest on x86-64 has its RAM; in the mem-file, the upper region follows the lower."""
    low_bytes = min(memory_bytes, _LOW_BYTES)
    low = RamRegion(0, low_bytes, 0)
    if memory_bytes == low_bytes:
        return (low,)
    return (low, RamRegion(_HIGH_START, memory_bytes - low_bytes, low_bytes))


def standing(version: str) -> Standing:
    """Return what is known of that version."""
    if re.sub(r"^(\d+\.\d+)\.0$", r"\1", version) in RUN:
        return Standing(True, "run")
    were_run = f"{', '.join(RUN)} {'was' if len(RUN) == 1 else 'were'} run"
    if is_pre_release(version) or re.fullmatch(r"\d+\.\d+(\.\d+)?", version) is None:
        return Standing(False, f"untried: no release; {were_run}")
    if release(version) > NEWEST_READ:
        newest = f"{NEWEST_READ[0]}.{NEWEST_READ[1]}"
        return Standing(False, f"untried: newer than any whose sources were read ({newest}); {were_run}")
    return Standing(False, f"untried, as in its sources; {were_run}")
