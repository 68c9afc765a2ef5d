"""Facts about QEMU's releases: those that were run, and the differences that matter to ramet.

Sources: QEMU's `qapi/qom.json` (MemoryBackendFileProperties: `rom`), `migration/fd.c` and
`docs/about/deprecated.rst` and `removed-features.rst` (`fd:` of a plain file), `system/vl.c` (`-mon`), at the
tags v7.2.0 to v11.1.3; `docs/reference/qemu.md` for what was run.
"""

from __future__ import annotations

from typing import Final

from ramet.drivers.interface import Standing
from ramet.drivers.versions import is_pre_release, release

OLDEST: Final = (7, 2)
FLAGS_OF_CMPXCHG16B_SINCE: Final = (8, 0)
"""The first release that emulates the flags of cmpxchg16b (`target/i386/tcg/translate.c`, gen_cmpxchg16b)."""
READ_ONLY_SINCE: Final = (8, 2)
"""The first release whose RAM can be a mem-file that is open for reading only (`readonly=on,rom=off`)."""
FD_SETS_SINCE: Final = (9, 1)
"""The first release that loads a vmstate as `file:` from a set of descriptors.

The older way, a plain file as `fd:`, is deprecated from the same release on, and refused from 11.0 on.
"""
MONITOR_OBJECTS_SINCE: Final = (11, 1)
"""The first release in which a monitor is an object, and `-mon` is deprecated."""

RUN: Final = ((7, 2), (10, 0), (11, 1))
"""The releases that ramet's tests were run with."""
NEWEST_READ: Final = RUN[-1]
"""The newest release whose documents were read."""


def machine_type(numbers: tuple[int, int]) -> str:
    """Return the name of a release's own `pc` machine, which later releases make for six more years.

    A pre-release (11.1.90 leads to 11.2) makes the machine of the release before, too.
    """
    return f"pc-i440fx-{numbers[0]}.{numbers[1]}"


def standing(version: str) -> Standing:
    """Return what is known of that version."""
    numbers = release(version)
    names = ", ".join(map(_shown, RUN))
    if is_pre_release(version):
        return Standing(False, f"untried: no release; {names} were run")
    if numbers in RUN:
        return Standing(True, "run")
    if numbers > NEWEST_READ:
        newest = _shown(NEWEST_READ)
        words = f"untried: newer than any whose documents were read ({newest}); {names} were run"
        return Standing(False, words)
    return Standing(False, f"untried, documented to do what ramet asks of it; {names} were run")


def _shown(numbers: tuple[int, int]) -> str:
    return f"{numbers[0]}.{numbers[1]}"
