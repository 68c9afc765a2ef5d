"""EROFS's structures on the medium, little endian.

Source: Linux, `fs/erofs/erofs_fs.h` and Documentation/filesystems/erofs.rst. All that is used here is read by
Linux 5.4 and newer; chunk-based files and device tables by 5.16 and newer.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import Final

from ramet.images.erofs.crc32c import crc32c

BLOCK_BITS: Final = 12
BLOCK_BYTES: Final = 1 << BLOCK_BITS
SLOT_BYTES: Final = 32
"""Inodes begin at a multiple of this; an inode's number (nid) is its offset in slots."""
INODE_BYTES: Final = 64
"""An extended inode: 32-bit owners, 64-bit sizes, a time per inode."""
CHUNK_INDEX_BYTES: Final = 8
DIRENT_BYTES: Final = 12
XATTR_HEADER_BYTES: Final = 12
ROOT_NID_LIMIT: Final = 1 << 16
BLOCK_LIMIT: Final = 1 << 32

_SUPERBLOCK: Final = struct.Struct("<IIIBBHQQIIII16s16sIHHHBBIQB23x")
_INODE: Final = struct.Struct("<HHHHQIIIIqII16x")
_DIRENT: Final = struct.Struct("<QHBx")
_DEVICE_SLOT: Final = struct.Struct("<64sII56x")
_CHUNK_INDEX: Final = struct.Struct("<HHI")
_XATTR_HEADER: Final = struct.Struct("<IB7x")
_XATTR_ENTRY: Final = struct.Struct("<BBH")

_SUPERBLOCK_AT: Final = 1024
_MAGIC: Final = 0xE0F5E1E2
_COMPAT: Final = 0x1 | 0x2  # a checksum; inodes have their mtime
_CHUNKED_FILE: Final = 0x4
_DEVICE_TABLE: Final = 0x8
_VOLUME: Final = b"ramet"
_EXTENDED: Final = 1
_CHUNK_FORMAT: Final = 31 | 0x20
"""The largest chunk, 2^31 blocks, so that a file has one; with chunk indexes, which name a device."""
_SLOT_TABLE_AT: Final = _SUPERBLOCK_AT + _SUPERBLOCK.size
DEVICE_LIMIT: Final = (BLOCK_BYTES - _SLOT_TABLE_AT) // _DEVICE_SLOT.size
"""Device slots that fit into the first block."""

_FILE_TYPES: Final = {
    stat.S_IFREG: 1,
    stat.S_IFDIR: 2,
    stat.S_IFCHR: 3,
    stat.S_IFBLK: 4,
    stat.S_IFIFO: 5,
    stat.S_IFSOCK: 6,
    stat.S_IFLNK: 7,
}
_XATTR_PREFIXES: Final = (
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
)


class DataLayout(IntEnum):
    """The way to an inode's data."""

    PLAIN = 0
    """In consecutive blocks. What DAX maps, with CHUNKED."""
    INLINE = 2
    """Like PLAIN, but the last part block follows the inode."""
    CHUNKED = 4
    """In blocks of another device."""


def first_block(
    *, root_nid: int, inodes: int, blocks: int, xattr_block: int, device_blocks: Sequence[int]
) -> bytes:
    """Return the image's first block: superblock, device table, checksum.

    `device_blocks` is the length of each further device, in the order of the mount's `device=` options.
    """
    incompat = _CHUNKED_FILE | _DEVICE_TABLE if device_blocks else 0
    block = bytearray(BLOCK_BYTES)
    fields = (
        *(_MAGIC, 0, _COMPAT, BLOCK_BITS, 0, root_nid, inodes),
        *(0, 0),  # the time of building: always the same
        *(blocks, 0, xattr_block, bytes(16), _VOLUME, incompat, 0),
        *(len(device_blocks), _SLOT_TABLE_AT // _DEVICE_SLOT.size if device_blocks else 0),
        *(0, 0, 0, 0, 0),
    )
    _SUPERBLOCK.pack_into(block, _SUPERBLOCK_AT, *fields)
    for number, length in enumerate(device_blocks):
        # No tag: Linux takes it for a path. No mapped address: chunk indexes name the device.
        _DEVICE_SLOT.pack_into(block, _SLOT_TABLE_AT + number * _DEVICE_SLOT.size, b"", length, 0)
    struct.pack_into("<I", block, _SUPERBLOCK_AT + 4, crc32c(bytes(block[_SUPERBLOCK_AT:])))
    return bytes(block)


def inode(
    *,
    layout: DataLayout,
    xattr_bytes: int,
    mode: int,
    size_bytes: int,
    place: int,
    number: int,
    owner: tuple[int, int],
    mtime: tuple[int, int],
    links: int,
) -> bytes:
    """Return an extended inode. `place` is a block, a device (`device_number`) or `CHUNK_PLACE`."""
    count = (xattr_bytes - XATTR_HEADER_BYTES) // 4 + 1 if xattr_bytes else 0
    form = _EXTENDED | layout << 1
    return _INODE.pack(form, count, mode, 0, size_bytes, place, number, *owner, *mtime, links)


CHUNK_PLACE: Final = _CHUNK_FORMAT
"""The `place` of a chunk-based inode; its chunk index says where."""


def chunk_index(device: int, block: int) -> bytes:
    """Return the index of a file's only chunk. `device` counts from 1; 0 is the image itself."""
    return _CHUNK_INDEX.pack(0, device, block)


def directory_entry(nid: int, name_offset: int, file_type: int) -> bytes:
    """Return one entry, for a file of the type `stat.S_IFREG` or its like."""
    return _DIRENT.pack(nid, name_offset, _FILE_TYPES[file_type])


def device_number(major: int, minor: int) -> int:
    """Encode a device's number as Linux does (`new_encode_dev`, `linux/kdev_t.h`)."""
    return (minor & 0xFF) | major << 8 | (minor & ~0xFF) << 12


def xattr_header(shared: Sequence[int]) -> bytes:
    """Return the header of an inode's attributes, with the numbers of the shared ones."""
    return _XATTR_HEADER.pack(0, len(shared)) + struct.pack(f"<{len(shared)}I", *shared)


def xattr_entry(name: bytes, value: bytes) -> bytes:
    """Return one attribute, padded. Raises `ValueError` for a name that EROFS can't hold."""
    for prefix, index in _XATTR_PREFIXES:
        if name.startswith(prefix):
            rest = name.removeprefix(prefix)
            entry = _XATTR_ENTRY.pack(len(rest), index, len(value)) + rest + value
            return entry + bytes(-len(entry) % 4)
    raise ValueError(f"EROFS has no attribute {name!r}")
