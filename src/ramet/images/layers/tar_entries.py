"""Entries of a layer's tar archive, one at a time, with every announced size bounded before it is believed.

Reads ustar, V7, GNU (long names, sparse files, base-256 numbers) and PAX (names, numbers, times, attributes,
sparse files). Sources: pax(1p); the GNU tar manual; the OCI image specification 1.1, layer.md. Where they
leave a choice, this is what Go's archive/tar does, with which container tools read layers: global extended
headers change nothing, links and directories have no data, a missing end marker is no error.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from ramet.errors import DamagedError
from ramet.images.layers import pax, sparse
from ramet.images.layers.limits import (
    DEFAULT_LIMITS,
    DEVICE_MAJOR_BITS,
    DEVICE_MINOR_BITS,
    FILE_BLOCK_BYTES,
    LINK_BYTES,
    Limits,
)
from ramet.images.layers.tar_header import BLOCK_BYTES, Header, parse_header, text
from ramet.images.layers.unpack import LayerStream

HARD_LINK: Final = 0
"""The `file_type` of an entry that is one more name of an earlier one."""
XATTR_PREFIX: Final = b"SCHILY.xattr."
TEXT_ACL_PREFIX: Final = b"SCHILY.acl."
"""ACLs as text, with names of the machine that packed them. They are counted as dropped."""

_TYPES: Final = {
    b"0": stat.S_IFREG,
    b"\0": stat.S_IFREG,
    b"7": stat.S_IFREG,
    b"S": stat.S_IFREG,
    b"1": HARD_LINK,
    b"2": stat.S_IFLNK,
    b"3": stat.S_IFCHR,
    b"4": stat.S_IFBLK,
    b"5": stat.S_IFDIR,
    b"6": stat.S_IFIFO,
}
_ID_LIMIT: Final = 2**32 - 1  # (uid_t) -1 is nobody's: chown(2)
_TIME_LIMIT: Final = 2**62
_SHOWN_BYTES: Final = 200


class TarEntry(NamedTuple):
    """An entry. Names and link targets are as written, without any interpretation."""

    name: bytes
    file_type: int
    """`stat.S_IFREG` and its like, or `HARD_LINK`."""
    permissions: int
    uid: int
    gid: int
    mtime: tuple[int, int]
    """Seconds since 1970, nanoseconds (0 to 10^9 - 1)."""
    link: bytes
    device: tuple[int, int]
    size_bytes: int
    """The file's length with its holes; 0 unless regular."""
    xattrs: dict[bytes, bytes]
    """By name; an ACL that is text has the name of its record."""

    @property
    def metadata_bytes(self) -> int:
        """The length of names, link target and attributes."""
        attributes = sum(len(name) + len(value) for name, value in self.xattrs.items())
        return len(self.name) + len(self.link) + attributes


@dataclass(slots=True)
class _Extended:
    """Everything that headers said about the entry that follows them."""

    name: bytes | None = None
    link: bytes | None = None
    records: list[tuple[bytes, bytes]] = field(default_factory=list)
    taken_bytes: int = 0


def shown(name: bytes) -> str:
    """Return a stranger's name for an error's message: escaped, quoted, and not longer than a line or two."""
    return repr(os.fsdecode(name[:_SHOWN_BYTES])) + ("…" if len(name) > _SHOWN_BYTES else "")


class TarReader:
    """Iterates once over the entries of `stream`; `contents` gives the data of the entry just returned."""

    def __init__(self, stream: LayerStream, limits: Limits = DEFAULT_LIMITS) -> None:
        self._stream = stream
        self._limits = limits
        self._stored_bytes = 0
        self._padding_bytes = 0
        self._extents: sparse.Extents = []
        self._content_bytes = 0

    def __iter__(self) -> Iterator[TarEntry]:
        """Yield the entries in order. Raises `DamagedError`, with the entry's name where it is known."""
        while (entry := self._next()) is not None:
            yield entry

    def contents(self) -> Iterator[tuple[int, memoryview]]:
        """Yield (offset, bytes) of the current file's data, ascending; all else of the file is zeros.

        Raises `DamagedError` if the archive is cut.
        """
        extents, self._extents = self._extents, []
        for offset, length in extents:
            for piece in self._stream.pieces(length):
                self._stored_bytes -= len(piece)
                yield offset, piece
                offset += len(piece)

    def _next(self) -> TarEntry | None:
        self._stream.skip(self._stored_bytes + self._padding_bytes)
        self._stored_bytes = self._padding_bytes = 0
        extended = _Extended()
        while (header := self._header()) is not None:
            extended.taken_bytes += BLOCK_BYTES
            match header.type:
                case b"x":
                    # Go, GNU tar and libarchive: a second extended header replaces the first.
                    extended.records = pax.parse_records(self._body(header, extended))
                case b"g":
                    pax.parse_records(self._body(header, extended))
                case b"L":
                    extended.name = text(self._body(header, extended))
                case b"K":
                    extended.link = text(self._body(header, extended))
                case _:
                    return self._entry(header, extended)
        if extended.taken_bytes:
            raise DamagedError("an extended header has no entry behind it")
        return None

    def _header(self) -> Header | None:
        """Return the next header; None at the archive's end: two blocks of zeros, or nothing more."""
        if self._stream.at_end():
            return None
        block = self._stream.read(BLOCK_BYTES)
        if block.strip(b"\0"):
            return parse_header(block)
        if not self._stream.at_end() and self._stream.read(BLOCK_BYTES).strip(b"\0"):
            raise DamagedError("something follows a block of zeros in it")
        return None

    def _body(self, header: Header, extended: _Extended) -> bytes:
        """Read an extended header's body, whose announced size isn't believed beyond the limit."""
        extended.taken_bytes += header.size
        if extended.taken_bytes > self._limits.header_bytes:
            raise DamagedError("an extended header is too large")
        body = self._stream.read(header.size)
        self._stream.skip(-header.size % BLOCK_BYTES)
        return body

    def _entry(self, header: Header, extended: _Extended) -> TarEntry:
        records = dict(extended.records)
        name = records.get(b"GNU.sparse.name") or records.get(b"path") or extended.name or header.name
        try:
            return self._checked(header, extended, records, name)
        except DamagedError as error:
            raise DamagedError(f"{shown(name)}: {error.message}") from error

    def _checked(
        self, header: Header, extended: _Extended, records: dict[bytes, bytes], name: bytes
    ) -> TarEntry:
        file_type = _TYPES.get(header.type)
        if file_type is None:
            raise DamagedError(f"it is of the type {header.type!r}, which no layer has")
        if file_type == stat.S_IFREG and header.type == b"\0" and name.endswith(b"/"):
            file_type = stat.S_IFDIR  # V7 had no directories
        if not name or len(name) > self._limits.path_bytes or b"\0" in name:
            raise DamagedError("its name is empty, too long, or contains a zero")
        size = 0
        if file_type == stat.S_IFREG:
            size = self._data(header, extended, records)
        link = b""
        if file_type in (HARD_LINK, stat.S_IFLNK):
            link = records.get(b"linkpath") or extended.link or header.link
            if not link or len(link) > LINK_BYTES or b"\0" in link:
                raise DamagedError("its link's target is empty, too long, or contains a zero")
        device = header.device if file_type in (stat.S_IFCHR, stat.S_IFBLK) else (0, 0)
        if device[0] >> DEVICE_MAJOR_BITS or device[1] >> DEVICE_MINOR_BITS:
            raise DamagedError(f"Linux has no device {device[0]}:{device[1]}")
        mtime = pax.parse_time(records[b"mtime"]) if records.get(b"mtime") else (header.mtime, 0)
        if abs(mtime[0]) >= _TIME_LIMIT:
            raise DamagedError("its mtime is out of range")
        return TarEntry(
            name=name,
            file_type=file_type,
            permissions=header.mode & 0o7777,
            uid=_owner(records.get(b"uid"), header.uid),
            gid=_owner(records.get(b"gid"), header.gid),
            mtime=mtime,
            link=link,
            device=device,
            size_bytes=size,
            xattrs=self._xattrs(records),
        )

    def _data(self, header: Header, extended: _Extended, records: dict[bytes, bytes]) -> int:
        """Note where the file's data is. Returns its length with holes."""
        stored = pax.parse_decimal(records[b"size"], "size") if records.get(b"size") else header.size
        self._stored_bytes, self._padding_bytes = stored, -stored % BLOCK_BYTES
        size = stored
        self._extents = [(0, stored)]
        if header.type == b"S":
            size, self._extents = sparse.read_old(header, self._stream, self._limits)
        elif any(key.startswith(b"GNU.sparse.") for key in records):
            real = records.get(b"GNU.sparse.realsize") or records.get(b"GNU.sparse.size") or b""
            size = pax.parse_decimal(real, "sparse size")
            if records.get(b"GNU.sparse.major") == b"1" and records.get(b"GNU.sparse.minor") == b"0":
                taken, self._extents = sparse.read_leading(self._stream, self._limits, stored)
                self._stored_bytes -= taken
            else:
                self._extents = sparse.parse_listed(extended.records, self._limits)
        if size > self._limits.file_blocks * FILE_BLOCK_BYTES:
            raise DamagedError("it is too large")
        self._content_bytes += size
        if self._content_bytes > self._limits.content_bytes:
            raise DamagedError("the layer's files are too large, holes included")
        sparse.check(self._extents, size_bytes=size, stored_bytes=self._stored_bytes)
        return size

    def _xattrs(self, records: dict[bytes, bytes]) -> dict[bytes, bytes]:
        xattrs = {
            key.removeprefix(XATTR_PREFIX): value
            for key, value in records.items()
            if key.startswith((XATTR_PREFIX, TEXT_ACL_PREFIX))
        }
        if len(xattrs) > self._limits.xattrs:
            raise DamagedError("it has too many extended attributes")
        if sum(len(key) + len(value) for key, value in xattrs.items()) > self._limits.xattr_bytes:
            raise DamagedError("its extended attributes are too large")
        for key, value in xattrs.items():
            if len(key) > 255 or b"\0" in key or not key.partition(b".")[2]:
                raise DamagedError(f"an extended attribute can't be named {shown(key)}")
            if len(value) > self._limits.xattr_value_bytes:
                raise DamagedError(f"its extended attribute {shown(key)} is too large")
        return xattrs


def _owner(record: bytes | None, field_value: int) -> int:
    owner = pax.parse_decimal(record, "owner") if record else field_value
    if owner >= _ID_LIMIT:
        raise DamagedError("its owner's number is out of range")
    return owner
