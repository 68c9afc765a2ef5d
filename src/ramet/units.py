"""Units and address spaces. A number's unit is in its name; an address's space is in its type."""

from __future__ import annotations

import math
import mmap
import re
from typing import Final, NewType

from ramet.errors import UsageError

PAGE_SIZE_BYTES: Final = mmap.PAGESIZE
KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB
TIB: Final = 1024 * GIB

GuestPhysical = NewType("GuestPhysical", int)
"""An address as the guest's page tables see RAM."""
FileOffset = NewType("FileOffset", int)
"""An offset in a mem-file."""
HostVirtual = NewType("HostVirtual", int)
"""An address in a VMM's own address space."""

LONGEST_TIME_LIMIT_S: Final = 10 * 365 * 86_400
"""Ten years: a longer limit means no limit."""

_SIZE = re.compile(r"(\d{1,18})\s*([KMGT]?)(?:i?B)?", re.IGNORECASE | re.ASCII)
_FACTOR: Final = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": TIB}


def parse_size(text: str | int) -> int:
    """Parse a size into bytes: `256M`, `2G`, `512MiB` or a plain number of bytes. Units are powers of 1024.

    Raises `UsageError` for anything else.
    """
    if isinstance(text, int) and not isinstance(text, bool):
        return text
    if not isinstance(text, str):
        raise UsageError(f"{text!r} is not a size", hint="write it as 256M or 2G")
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{text!r} is not a size", hint="write it as 256M or 2G")
    return int(match[1]) * _FACTOR[match[2].upper()]


def parse_time_limit(value: float | str | None, *, what: str = "the time limit") -> float | None:
    """Parse a time limit in seconds: finite, more than 0, at most ten years; None: no limit.

    Every time limit has this meaning. A text is a number, as a command line has it. Raises `UsageError` for
    anything else.
    """
    if value is None:
        return None
    hint = "give it a number of seconds that is more than 0, such as 1.5"
    if isinstance(value, bool) or not (isinstance(value, str) or hasattr(value, "__float__")):
        raise UsageError(f"{what}: {type(value).__name__} {value!r:.60}", hint=hint)
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        raise UsageError(f"{what}: {str(value)[:60]!r} is no number of seconds", hint=hint) from None
    if not math.isfinite(seconds) or seconds <= 0.0:
        raise UsageError(f"{what}: {seconds:g} s can't be kept", hint=hint)
    if seconds > LONGEST_TIME_LIMIT_S:
        raise UsageError(
            f"{what}: {seconds:g} s can't be kept",
            hint=f"the longest is {LONGEST_TIME_LIMIT_S:g} s, ten years",
        )
    return seconds


def format_bytes(count_bytes: int) -> str:
    """People's words for a number of bytes: `96.0 MiB`."""
    value = float(count_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{count_bytes} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def round_up(count_bytes: int, quantum_bytes: int) -> int:
    """Return the next multiple of `quantum_bytes`, or `count_bytes` itself when it is one."""
    return -(-count_bytes // quantum_bytes) * quantum_bytes


def round_up_to_page(count_bytes: int) -> int:
    """Return the next multiple of the page size, or `count_bytes` itself when it is one."""
    return round_up(count_bytes, PAGE_SIZE_BYTES)
