"""Files of this process that a VMM writes to: named through `/proc`, so that they need no names."""

from __future__ import annotations

import os
from functools import cache
from typing import Final

from ramet.errors import VmmError


def path_of(descriptor: int) -> str:
    """Return a path by which another process of this user opens this process's open file.

    proc(5), `/proc/PID/fd`: the path leads to the file itself, also to a memfd.
    """
    return f"/proc/{os.getpid()}/fd/{descriptor}"


def require_empty(descriptor: int) -> None:
    """Raise `VmmError` when something is in the file: it would be overwritten."""
    if os.fstat(descriptor).st_size:
        raise VmmError("vmstate is only ever written to an empty file")


_CHECKSUM_BYTES: Final = 8
_POLYNOMIAL: Final = 0x95AC9329AC4BC9B5  # CRC-64 of Redis (Jones), the bits reversed


def has_checksum(descriptor: int) -> bool:
    """Tell whether the file ends with the CRC-64 of the content before it, as a whole Firecracker state does.

    Source: Firecracker's `src/vmm/src/snapshot/crc.rs`. Takes a few milliseconds.
    """
    size = os.fstat(descriptor).st_size
    content = os.pread(descriptor, size, 0)
    if len(content) != size or size <= _CHECKSUM_BYTES:
        return False
    table, checksum = _table(), 0
    for octet in content[:-_CHECKSUM_BYTES]:
        checksum = table[(checksum ^ octet) & 0xFF] ^ checksum >> 8
    return content[-_CHECKSUM_BYTES:] == checksum.to_bytes(_CHECKSUM_BYTES, "little")


@cache
def _table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return table
