"""The reader of what the writer writes: an image's files by their names, with attributes and contents.

It reads the forms of `format` alone. All offsets and lengths are checked, because a disk may have eaten some.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Final, NamedTuple

from ramet.errors import DamagedError
from ramet.images.erofs import parse as erofs
from ramet.images.erofs.format import (
    BLOCK_BYTES,
    BLOCK_LIMIT,
    CHUNK_INDEX_BYTES,
    INODE_BYTES,
    SLOT_BYTES,
    DataLayout,
)
from ramet.units import MIB

_READ_BYTES: Final = 1 * MIB
_MOST_BYTES: Final = BLOCK_LIMIT * BLOCK_BYTES
_MOST_SMALL_BYTES: Final = 64 * MIB
"""Of a directory, a link's target or an inode's attributes."""


class File(NamedTuple):
    """A file of an image. `nid` is the same for all names of one file."""

    nid: int
    mode: int
    size_bytes: int
    uid: int
    gid: int
    mtime: tuple[int, int]
    links: int
    device: tuple[int, int]
    xattrs: dict[bytes, bytes]
    layout: DataLayout
    at: tuple[int, int, int]
    """The device with the contents (0: the image), their first block, and where a tail begins."""


class ErofsReader:
    """An image in an open file, with those of its further devices in the order of the mount.

    All methods block, and raise `DamagedError` for what the writer wouldn't write, `OSError`.
    """

    def __init__(self, image: int, *devices: int) -> None:
        self._files = (image, *devices)
        fields = erofs.read_first_block(self._read(0, 0, BLOCK_BYTES))
        if fields.devices != len(devices):
            raise DamagedError(f"the image has {fields.devices} further devices, not {len(devices)}")
        self._root = fields.root_nid
        self._xattrs_at = fields.xattr_block * BLOCK_BYTES
        self.inodes = fields.inodes
        """The number of its inodes."""

    def walk(self) -> Iterator[tuple[bytes, File]]:
        """Yield each name's (path, file): parents first, in the order of their bytes, the root as b""."""
        pending = [(b"", self._root)]
        seen: set[int] = set()
        while pending:
            path, nid = pending.pop()
            file = self.file(nid)
            yield path, file
            if not stat.S_ISDIR(file.mode):
                continue
            if nid in seen:
                raise DamagedError(f"the image has the directory {nid} twice")
            seen.add(nid)
            for name, child in sorted(self._entries(file), reverse=True):
                pending.append((path + b"/" + name if path else name, child))

    def file(self, nid: int) -> File:
        """Return the file with that inode number."""
        offset = nid * SLOT_BYTES
        fields = erofs.read_inode(self._read(0, offset, INODE_BYTES))
        body_at = offset + INODE_BYTES
        xattrs = self._xattrs(body_at, fields.xattr_bytes) if fields.xattr_bytes else {}
        tail = body_at + fields.xattr_bytes
        place = (0, fields.place, tail)
        if fields.layout == DataLayout.CHUNKED:
            tail += -tail % CHUNK_INDEX_BYTES
            device, block = erofs.read_chunk_index(self._read(0, tail, CHUNK_INDEX_BYTES))
            place = (device, block, tail)
        kind = stat.S_IFMT(fields.mode)
        is_device = kind in (stat.S_IFCHR, stat.S_IFBLK)
        return File(
            nid,
            fields.mode,
            fields.size_bytes,
            *fields.owner,
            fields.mtime,
            fields.links,
            erofs.read_device_number(fields.place) if is_device else (0, 0),
            xattrs,
            fields.layout,
            place,
        )

    def read(self, file: File) -> Iterator[bytes]:
        """Yield a file's contents."""
        device, block, tail_at = file.at
        is_inline = file.layout == DataLayout.INLINE
        in_blocks = file.size_bytes - file.size_bytes % BLOCK_BYTES if is_inline else file.size_bytes
        done = 0
        while done < in_blocks:
            piece = self._read(device, block * BLOCK_BYTES + done, min(_READ_BYTES, in_blocks - done))
            yield piece
            done += len(piece)
        if in_blocks < file.size_bytes:
            yield self._read(0, tail_at, file.size_bytes - in_blocks)

    def link(self, file: File) -> bytes:
        """Return a symbolic link's target."""
        return self._small(file)

    def _small(self, file: File) -> bytes:
        if file.size_bytes > _MOST_SMALL_BYTES:
            raise DamagedError(f"the image's inode {file.nid} has {file.size_bytes} bytes, too many")
        return b"".join(self.read(file))

    def _entries(self, directory: File) -> Iterator[tuple[bytes, int]]:
        content = self._small(directory)
        for at in range(0, len(content), BLOCK_BYTES):
            for name, nid in erofs.read_directory_block(content[at : at + BLOCK_BYTES]):
                if name not in (b".", b".."):
                    if not name or b"/" in name:
                        raise DamagedError("the image has a name that can't be")
                    yield name, nid

    def _xattrs(self, at: int, length: int) -> dict[bytes, bytes]:
        if length > _MOST_SMALL_BYTES:
            raise DamagedError("the image has attributes that are too large")
        shared, rest = erofs.read_xattr_header(self._read(0, at, length))
        found = dict(erofs.read_xattr_entries(rest))
        for number in shared:
            place = self._xattrs_at + 4 * number
            head = self._read(0, place, erofs.XATTR_ENTRY_BYTES)
            found |= erofs.read_xattr_entries(self._read(0, place, erofs.xattr_entry_length(head)))
        return found

    def _read(self, device: int, offset: int, length: int) -> bytes:
        if device >= len(self._files):
            raise DamagedError(f"the image has no device {device}")
        if offset + length > _MOST_BYTES:
            raise DamagedError("the image has something behind its end")
        data = os.pread(self._files[device], length, offset)
        while len(data) < length:
            more = os.pread(self._files[device], length - len(data), offset + len(data))
            if not more:
                raise DamagedError(f"the image's device {device} ends early, at {offset + len(data)}")
            data += more
        return data
