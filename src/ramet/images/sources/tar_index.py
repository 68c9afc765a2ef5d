"""Names in a tar archive and where their bytes are, without reading the bytes: for archives of images.

Nothing is extracted; a name is only ever looked up. Archives of images have files, directories and links (to
a layer that several images have); anything else isn't one. Sources: pax(1p); the GNU tar manual.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from ramet.errors import DamagedError
from ramet.images.layers import pax
from ramet.images.layers.limits import DEFAULT_LIMITS
from ramet.images.layers.tar_entries import shown
from ramet.images.layers.tar_header import BLOCK_BYTES, Header, parse_header, text
from ramet.system import threads
from ramet.units import MIB

_READ_BYTES: Final = 1 * MIB
_MOST_ENTRIES: Final = 65_536
_MOST_LINKS: Final = 8
_FILES: Final = (b"0", b"\0", b"7")
_LINKS: Final = (b"1", b"2")
_DIRECTORY: Final = b"5"


class TarIndex:
    """The files of an archive, which is an open regular file that the caller keeps open and unchanged."""

    def __init__(self, descriptor: int) -> None:
        """Read the archive's headers. Raises `DamagedError`, which names the entry; `OSError`."""
        self._descriptor = descriptor
        self._size_bytes = os.fstat(descriptor).st_size
        self._files: dict[bytes, tuple[int, int]] = {}
        self._links: dict[bytes, bytes] = {}
        self._position = 0
        while self._next():
            if len(self._files) + len(self._links) > _MOST_ENTRIES:
                raise DamagedError("it has too many entries for an archive of images")

    def size(self, name: str) -> int | None:
        """Return the length of a file, None if there is no such file."""
        place = self._place(os.fsencode(name))
        return None if place is None else place[1]

    def chunks(self, name: str) -> Iterator[bytes]:
        """Yield a file's content. Raises `KeyError` if there is no such file."""
        place = self._place(os.fsencode(name))
        if place is None:
            raise KeyError(name)
        offset, size = place
        while size:
            piece = os.pread(self._descriptor, min(size, _READ_BYTES), offset)
            if not piece:
                raise DamagedError(f"{shown(os.fsencode(name))}: the archive was cut while it was read")
            yield piece
            offset, size = offset + len(piece), size - len(piece)

    def _place(self, name: bytes) -> tuple[int, int] | None:
        for _ in range(_MOST_LINKS):
            if (target := self._links.get(name)) is None:
                return self._files.get(name)
            name = target
        raise DamagedError(f"{shown(name)}: it is a loop of links")

    def _next(self) -> bool:
        threads.check_cancelled()
        name = link = b""
        records: dict[bytes, bytes] = {}
        while (header := self._header()) is not None:
            match header.type:
                case b"x":
                    records = dict(pax.parse_records(self._body(header)))
                case b"g":
                    self._body(header)
                case b"L":
                    name = text(self._body(header))
                case b"K":
                    link = text(self._body(header))
                case _:
                    self._take(header, records, name, link)
                    return True
        return False

    def _header(self) -> Header | None:
        block = self._read(BLOCK_BYTES)
        if len(block) < BLOCK_BYTES and block:
            raise DamagedError("it is cut short")
        return parse_header(block) if block.strip(b"\0") else None

    def _body(self, header: Header) -> bytes:
        if header.size > DEFAULT_LIMITS.header_bytes:
            raise DamagedError(f"{shown(header.name)}: an extended header is too large")
        body = self._read(header.size)
        if len(body) < header.size:
            raise DamagedError("it is cut short")
        self._position += -header.size % BLOCK_BYTES
        return body

    def _read(self, size_bytes: int) -> bytes:
        data = os.pread(self._descriptor, size_bytes, self._position)
        self._position += len(data)
        return data

    def _take(self, header: Header, records: dict[bytes, bytes], name: bytes, link: bytes) -> None:
        name = records.get(b"path") or name or header.name
        try:
            self._checked(header, records, name, records.get(b"linkpath") or link or header.link)
        except DamagedError as error:
            raise DamagedError(f"{shown(name)}: {error.message}") from error

    def _checked(self, header: Header, records: dict[bytes, bytes], name: bytes, link: bytes) -> None:
        if name.startswith(b"/") or b".." in name.split(b"/"):
            raise DamagedError("its name leads out of the archive")
        path = _inside(name)
        if header.type in _FILES:
            size = pax.parse_decimal(records[b"size"], "size") if records.get(b"size") else header.size
            if any(key.startswith(b"GNU.sparse.") for key in records):
                raise DamagedError("it is a sparse file, which no archive of images has")
            if self._position + size > self._size_bytes:
                raise DamagedError("the archive is cut short in it")
            self._links.pop(path, None)
            self._files[path] = (self._position, size)
            self._position += size + -size % BLOCK_BYTES
        elif header.type in _LINKS:
            # A symbolic link's target begins at its directory, a hard link's at the root.
            directory = path.rpartition(b"/")[0] if header.type == b"2" else b""
            target = _inside(link if link.startswith(b"/") else directory + b"/" + link)
            self._files.pop(path, None)
            self._links[path] = target
        elif header.type != _DIRECTORY:
            raise DamagedError(f"it is of the type {header.type!r}, which no archive of images has")


def _inside(path: bytes) -> bytes:
    """Return a path without `.` and `..`. Raises `DamagedError` for one that leads out."""
    parts: list[bytes] = []
    for part in path.split(b"/"):
        if part == b"..":
            if not parts:
                raise DamagedError("it is a link that leads out of the archive")
            parts.pop()
        elif part not in (b"", b"."):
            parts.append(part)
    return b"/".join(parts)
