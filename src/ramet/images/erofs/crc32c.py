"""CRC-32C, the checksum of EROFS's superblock. Python's zlib has only the other CRC-32.

Source: RFC 3720, appendix B.4 (polynomial 0x1EDC6F41, here with its bits reversed). The kernel's `crc32c`
doesn't invert the result.
"""

from __future__ import annotations

from typing import Final

_POLYNOMIAL: Final = 0x82F63B78


def _row(value: int) -> int:
    for _ in range(8):
        value = (value >> 1) ^ (_POLYNOMIAL if value & 1 else 0)
    return value


_TABLE: Final = tuple(_row(value) for value in range(256))


def crc32c(data: bytes, seed: int = 0xFFFFFFFF) -> int:
    """Return the CRC of `data` as Linux's `crc32c(seed, …)` does. Slow: for a block, not for files."""
    for byte in data:
        seed = _TABLE[(seed ^ byte) & 0xFF] ^ (seed >> 8)
    return seed
