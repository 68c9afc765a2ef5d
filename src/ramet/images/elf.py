"""The little of ELF that a kernel, a module and a static program have to be asked. Source: elf(5).

Every function takes the bytes of the whole file and raises `DamagedError` when they aren't a little-endian
ELF64 file or its tables lead outside of it. Nothing here trusts an offset.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from ramet.errors import DamagedError

MAGIC: Final = b"\x7fELF"
MACHINE_X86_64: Final = 62
_PT_INTERP: Final = 3
_PT_NOTE: Final = 4


class _Segment(NamedTuple):
    kind: int
    offset: int
    size_bytes: int


def machine(elf: bytes) -> int:
    """Return the `e_machine` number: the architecture that the file is for."""
    _require_elf64(elf)
    return int(struct.unpack_from("<H", elf, 18)[0])


def needs_interpreter(elf: bytes) -> bool:
    """Tell whether the program names a dynamic linker, which a guest doesn't have."""
    return any(segment.kind == _PT_INTERP for segment in _segments(elf))


def notes(elf: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield (name, type) of each note in the file's note segments."""
    for segment in _segments(elf):
        if segment.kind != _PT_NOTE:
            continue
        position, end = segment.offset, segment.offset + segment.size_bytes
        while position + 12 <= end:
            name_bytes, data_bytes, kind = struct.unpack_from("<III", elf, position)
            yield elf[position + 12 : position + 12 + name_bytes].rstrip(b"\0"), kind
            position += 12 + _round_up_to_4(name_bytes) + _round_up_to_4(data_bytes)


def section(elf: bytes, wanted: bytes) -> bytes:
    """Return the content of the first section of that name; empty when there is none."""
    _require_elf64(elf)
    try:
        (table,) = struct.unpack_from("<Q", elf, 40)
        entry_bytes, entries, names = struct.unpack_from("<HHH", elf, 58)
        headers = [struct.unpack_from("<IIQQQQ", elf, table + n * entry_bytes) for n in range(entries)]
        names_at = headers[names][4] if headers else 0
        for name, _kind, _flags, _address, offset, size_bytes in headers:
            end = elf.index(b"\0", names_at + name)
            if elf[names_at + name : end] == wanted:
                return _slice(elf, offset, size_bytes)
    except (struct.error, ValueError, IndexError) as error:
        raise DamagedError(f"an ELF file's section table is broken: {error}") from error
    return b""


def _segments(elf: bytes) -> list[_Segment]:
    _require_elf64(elf)
    (table,) = struct.unpack_from("<Q", elf, 32)
    entry_bytes, entries = struct.unpack_from("<HH", elf, 54)
    segments: list[_Segment] = []
    for number in range(entries):
        header = _slice(elf, table + number * entry_bytes, 56)
        kind, _flags, offset, _virtual, _physical, size_bytes = struct.unpack_from("<IIQQQQ", header)
        _slice(elf, offset, min(size_bytes, 1))
        segments.append(_Segment(kind, offset, min(size_bytes, len(elf) - offset)))
    return segments


def _slice(elf: bytes, offset: int, size_bytes: int) -> bytes:
    if offset + size_bytes > len(elf):
        raise DamagedError("an ELF file is cut short: its tables lead outside of it")
    return elf[offset : offset + size_bytes]


def _require_elf64(elf: bytes) -> None:
    # 0x02 0x01: 64 bits, little-endian.
    if len(elf) < 64 or elf[:6] != MAGIC + b"\x02\x01":
        raise DamagedError("this is not a little-endian ELF64 file")


def _round_up_to_4(size_bytes: int) -> int:
    return -(-size_bytes // 4) * 4
