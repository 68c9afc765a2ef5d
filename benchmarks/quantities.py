"""Numbers as the page prints them: three digits, with their unit."""

from __future__ import annotations

from math import floor, log10
from typing import Final

_BYTES: Final = (("GB", 1e9), ("MB", 1e6), ("KB", 1e3))
DIGITS: Final = 3


def number(value: float) -> str:
    """With three digits that mean something, and no exponent."""
    if value == 0:
        return "0"
    places = max(0, DIGITS - 1 - floor(log10(abs(value))))
    text = f"{round(value, places):,.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def quantity(value: float, unit: str) -> str:
    """With its unit. Bytes in powers of ten."""
    if unit == "bytes":
        for name, size in _BYTES:
            if value >= size:
                return f"{number(value / size)} {name}"
        return f"{number(value)} B"
    return f"{number(value)} {unit}".rstrip()


def place(x: float, axis: str) -> str:
    """A place on an axis. Sizes of memory are powers of two."""
    if axis.startswith("bytes"):
        mib = x / 2**20
        return f"{mib / 1024:g} GiB" if mib >= 1024 else f"{mib:g} MiB"
    return f"{x:g}"
