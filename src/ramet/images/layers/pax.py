"""Records of PAX extended headers, and the values that replace a header's fields.

Source: pax(1p), "pax Extended Header". `SCHILY.xattr.*` is star's and is what container tools write.
"""

from __future__ import annotations

import re
from typing import Final

from ramet.errors import DamagedError

_LENGTH = re.compile(rb"([1-9]\d{0,7}) ")
_SECONDS = re.compile(rb"(-?)(\d{1,18})(?:\.(\d{0,40}))?", re.ASCII)
_DECIMAL = re.compile(rb"\d{1,18}", re.ASCII)
_NANOSECONDS: Final = 10**9


def parse_records(data: bytes) -> list[tuple[bytes, bytes]]:
    """Split the body of an extended header into (key, value), in order. Raises `DamagedError`."""
    records: list[tuple[bytes, bytes]] = []
    position = 0
    while position < len(data):
        match = _LENGTH.match(data, position)
        if match is None:
            if data[position:].strip(b"\0"):
                raise DamagedError("an extended header's record has no length")
            break  # padded with zeros, as old writers do
        end = position + int(match[1])
        body = data[match.end() : end - 1]
        key, equals, value = body.partition(b"=")
        if end > len(data) or end <= match.end() or data[end - 1 : end] != b"\n" or not equals or not key:
            raise DamagedError("an extended header's record is damaged")
        records.append((key, value))
        position = end
    return records


def parse_decimal(value: bytes, what: str) -> int:
    """Return a record's number, 0 to 10^18. Raises `DamagedError`."""
    if not _DECIMAL.fullmatch(value):
        raise DamagedError(f"an extended header's {what} is no number")
    return int(value)


def parse_time(value: bytes) -> tuple[int, int]:
    """Return a record's time as (seconds, nanoseconds), rounded down. Raises `DamagedError`."""
    if not (match := _SECONDS.fullmatch(value)):
        raise DamagedError("an extended header's mtime is no time")
    fraction = (match[3] or b"").rstrip(b"0")
    total = int(match[2]) * _NANOSECONDS + int(fraction[:9].ljust(9, b"0"))
    if match[1]:
        total = -total - (len(fraction) > 9)
    return divmod(total, _NANOSECONDS)
