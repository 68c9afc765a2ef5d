"""A header block of a tar archive: the fields of a header, in the ustar, GNU and V7 forms.

Sources: pax(1p), "ustar Interchange Format"; the GNU tar manual, "Basic Tar Format" (`posix_header`,
base-256 numbers). Writers of layers agree on these: Go's archive/tar, GNU tar, libarchive.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from ramet.errors import DamagedError

BLOCK_BYTES: Final = 512
_USTAR: Final = b"ustar\x0000"
_GNU: Final = b"ustar  \x00"
_NUMBER_LIMIT: Final = 2**63


class Header(NamedTuple):
    """A header's fields as written; extended headers may replace most of them."""

    name: bytes
    type: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    link: bytes
    device: tuple[int, int]
    block: bytes
    """The whole block: GNU's sparse headers keep a map in it."""
    is_gnu: bool


def parse_header(block: bytes) -> Header:
    """Parse one block of 512 bytes. Raises `DamagedError` if it is no header of a tar archive."""
    expected = number(block[148:156], "checksum")
    # The checksum's own field counts as blanks; some old programs summed signed bytes.
    rest = block[:148] + block[156:]
    unsigned = sum(rest) + 8 * 0x20
    if expected != unsigned and expected != unsigned - 256 * sum(byte > 127 for byte in rest):
        raise DamagedError("it is no tar archive, or a header in it is damaged (checksum)")
    magic = block[257:265]
    is_gnu, kind = magic == _GNU, block[156:157]
    name = text(block[:100])
    if magic == _USTAR and (prefix := text(block[345:500])):
        name = prefix + b"/" + name
    has_device = kind in (b"3", b"4") and (is_gnu or magic == _USTAR)
    return Header(
        name=name,
        type=kind,
        mode=number(block[100:108], "mode"),
        uid=number(block[108:116], "uid"),
        gid=number(block[116:124], "gid"),
        size=number(block[124:136], "size"),
        mtime=number(block[136:148], "mtime", signed=True),
        link=text(block[157:257]),
        device=(number(block[329:337], "major"), number(block[337:345], "minor")) if has_device else (0, 0),
        block=block,
        is_gnu=is_gnu,
    )


def text(field: bytes) -> bytes:
    """Return a field's text: all bytes before the first NUL."""
    return field.split(b"\0", 1)[0]


def number(field: bytes, what: str, *, signed: bool = False) -> int:
    """Return a field's number: octal digits, or base 256 if the first bit is set (GNU).

    Raises `DamagedError` for anything else, for 2^63 and more, and for a negative number unless `signed`.
    """
    if field[0] & 0x80:
        value = int.from_bytes(field, "big") & ((1 << (8 * len(field) - 1)) - 1)
        if field[0] & 0x40:
            value -= 1 << (8 * len(field) - 1)
    else:
        digits = field.replace(b"\0", b" ").strip()
        if digits.strip(b"01234567"):
            raise DamagedError(f"a header's {what} is no number")
        value = int(digits or b"0", 8)
    if not (-_NUMBER_LIMIT if signed else 0) <= value < _NUMBER_LIMIT:
        raise DamagedError(f"a header's {what} is out of range")
    return value
