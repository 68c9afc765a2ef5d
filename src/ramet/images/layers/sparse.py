"""Maps of sparse files in tar archives: GNU's old header, and PAX formats 0.0, 0.1 and 1.0.

Source: the GNU tar manual, "Storing Sparse Files". An extent is (offset in the file, length) of stored data.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ramet.errors import DamagedError
from ramet.images.layers.limits import Limits
from ramet.images.layers.pax import parse_decimal
from ramet.images.layers.tar_header import BLOCK_BYTES, Header, number
from ramet.images.layers.unpack import LayerStream

Extents = list[tuple[int, int]]

_EXTENT_BYTES: Final = 24
_OLD_EXTENTS: Final = 4
_OLD_EXTENTS_AT: Final = 386
_OLD_EXTENDED_AT: Final = 482
_OLD_SIZE_AT: Final = 483
_NEXT_EXTENTS: Final = 21
_NEXT_EXTENDED_AT: Final = 504
_LINE_BYTES: Final = 20


def read_old(header: Header, stream: LayerStream, limits: Limits) -> tuple[int, Extents]:
    """Read the map of a GNU sparse member, whose header was just read. Returns (file size, extents)."""
    extents = list(_fields(header.block, _OLD_EXTENTS_AT, _OLD_EXTENTS))
    more = header.block[_OLD_EXTENDED_AT]
    while more:
        block = stream.read(BLOCK_BYTES)
        extents += _fields(block, 0, _NEXT_EXTENTS)
        more = block[_NEXT_EXTENDED_AT]
        _bound(extents, limits)
    return number(header.block[_OLD_SIZE_AT : _OLD_SIZE_AT + 12], "size"), extents


def _fields(block: bytes, position: int, count: int) -> Iterator[tuple[int, int]]:
    for at in range(position, position + count * _EXTENT_BYTES, _EXTENT_BYTES):
        if block[at : at + _EXTENT_BYTES].strip(b"\0 "):
            yield number(block[at : at + 12], "sparse map"), number(block[at + 12 : at + 24], "sparse map")


def parse_listed(records: list[tuple[bytes, bytes]], limits: Limits) -> Extents:
    """Return the map that format 0.0 (a record per number) or 0.1 (one record) keeps in the header."""
    numbers: list[bytes] = []
    for key, value in records:
        if key == b"GNU.sparse.map":
            numbers = value.split(b",") if value else []
        elif key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            if (key == b"GNU.sparse.offset") != (len(numbers) % 2 == 0):
                raise DamagedError("a sparse file's map is damaged")
            numbers.append(value)
    return _pairs(numbers, limits)


def read_leading(stream: LayerStream, limits: Limits, stored_bytes: int) -> tuple[int, Extents]:
    """Read the map of format 1.0 from the front of the data. Returns (bytes it took, extents)."""
    taken, rest = 0, b""
    numbers: list[bytes] = []
    wanted: int | None = None
    while wanted is None or len(numbers) < wanted:
        line, newline, behind = rest.partition(b"\n")
        if newline:
            if wanted is None:
                wanted = 2 * parse_decimal(line, "sparse map")
                if wanted > 2 * limits.sparse_extents:
                    raise DamagedError("a sparse file has too many pieces")
            else:
                numbers.append(line)
            rest = behind
        elif len(rest) > _LINE_BYTES or taken + BLOCK_BYTES > stored_bytes:
            raise DamagedError("a sparse file's map is damaged")
        else:
            rest += stream.read(BLOCK_BYTES)
            taken += BLOCK_BYTES
    return taken, _pairs(numbers, limits)


def check(extents: Extents, *, size_bytes: int, stored_bytes: int) -> None:
    """Raise `DamagedError` unless the extents are in order, inside the file, and as long as the data."""
    end = 0
    for offset, length in extents:
        if offset < end or offset + length > size_bytes:
            raise DamagedError("a sparse file's map is out of order or leads behind its end")
        end = offset + length
    if sum(length for _, length in extents) != stored_bytes:
        raise DamagedError("a sparse file's map and data differ in length")


def _pairs(numbers: list[bytes], limits: Limits) -> Extents:
    if len(numbers) % 2:
        raise DamagedError("a sparse file's map is damaged")
    values = [parse_decimal(value, "sparse map") for value in numbers]
    extents = list(zip(values[::2], values[1::2], strict=True))
    _bound(extents, limits)
    return extents


def _bound(extents: Extents, limits: Limits) -> None:
    if len(extents) > limits.sparse_extents:
        raise DamagedError("a sparse file has too many pieces")
