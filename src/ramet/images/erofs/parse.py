"""EROFS's structures read back: the other direction of `format`, for the forms that ramet writes.

Source: as `format`. Everything raises `DamagedError` for what `format` wouldn't write.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from ramet.errors import DamagedError
from ramet.images.erofs.crc32c import crc32c
from ramet.images.erofs.format import BLOCK_BITS, BLOCK_BYTES, DIRENT_BYTES, XATTR_HEADER_BYTES, DataLayout

_SUPERBLOCK_AT: Final = 1024
_MAGIC: Final = 0xE0F5E1E2
_SUPERBLOCK: Final = struct.Struct("<IIIBBHQQIIII16s16sIHHH")
_INODE: Final = struct.Struct("<HHHHQIIIIqII16x")
_DIRENT: Final = struct.Struct("<QHBx")
_CHUNK_INDEX: Final = struct.Struct("<HHI")
_XATTR_ENTRY: Final = struct.Struct("<BBH")
XATTR_ENTRY_BYTES: Final = _XATTR_ENTRY.size
_EXTENDED: Final = 1
_PREFIXES: Final = {
    1: b"user.",
    2: b"system.posix_acl_access",
    3: b"system.posix_acl_default",
    4: b"trusted.",
    6: b"security.",
}


class Superblock(NamedTuple):
    """The facts of an image's first block."""

    root_nid: int
    inodes: int
    blocks: int
    xattr_block: int
    devices: int


class InodeFields(NamedTuple):
    """The fields of an extended inode."""

    layout: DataLayout
    xattr_bytes: int
    mode: int
    size_bytes: int
    place: int
    owner: tuple[int, int]
    mtime: tuple[int, int]
    links: int


def read_first_block(block: bytes) -> Superblock:
    """Read an image's first block, whose checksum is compared."""
    fields = _SUPERBLOCK.unpack_from(block, _SUPERBLOCK_AT)
    magic, checksum, _, bits, _, root_nid, inodes, _, _, blocks, _, xattr_block = fields[:12]
    bare = bytearray(block[_SUPERBLOCK_AT:])
    bare[4:8] = bytes(4)
    if magic != _MAGIC or bits != BLOCK_BITS or checksum != crc32c(bytes(bare)):
        raise DamagedError("the image's first block isn't what ramet writes")
    return Superblock(root_nid, inodes, blocks, xattr_block, fields[16])


def read_inode(data: bytes) -> InodeFields:
    """Read an extended inode."""
    form, count, mode, _, size_bytes, place, _, uid, gid, seconds, nanoseconds, links = _INODE.unpack(data)
    try:
        layout = DataLayout(form >> 1)
    except ValueError:
        raise DamagedError(f"the image has an inode of the form {form}") from None
    if not form & _EXTENDED:
        raise DamagedError("the image has an inode that ramet wouldn't write")
    xattr_bytes = XATTR_HEADER_BYTES + 4 * (count - 1) if count else 0
    return InodeFields(
        layout, xattr_bytes, mode, size_bytes, place, (uid, gid), (seconds, nanoseconds), links
    )


def read_chunk_index(data: bytes) -> tuple[int, int]:
    """Read the index of a file's only chunk. Returns (device, block)."""
    _, device, block = _CHUNK_INDEX.unpack(data)
    return device, block


def read_device_number(number: int) -> tuple[int, int]:
    """Return the (major, minor) of a device's number."""
    return number >> 8 & 0xFFF, number & 0xFF | number >> 12 & 0xFFF00


def read_directory_block(block: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield the (name, nid) of each entry of a directory's block, which may be shorter than a block."""
    if len(block) < DIRENT_BYTES:
        raise DamagedError("the image has a directory that is cut")
    first = _DIRENT.unpack_from(block, 0)[1]
    if first % DIRENT_BYTES or not DIRENT_BYTES <= first <= min(len(block), BLOCK_BYTES):
        raise DamagedError("the image has a directory whose names are nowhere")
    entries = [_DIRENT.unpack_from(block, at) for at in range(0, first, DIRENT_BYTES)]
    ends = [offset for _, offset, _ in entries[1:]] + [len(block)]
    for (nid, begin, _), end in zip(entries, ends, strict=True):
        if not first <= begin < end <= len(block):
            raise DamagedError("the image has a directory whose names are in disorder")
        yield block[begin:end].rstrip(b"\0"), nid


def read_xattr_header(body: bytes) -> tuple[tuple[int, ...], bytes]:
    """Read what follows an inode with attributes: the numbers of shared ones, and the others' entries."""
    count = body[4]
    end = XATTR_HEADER_BYTES + 4 * count
    if end > len(body):
        raise DamagedError("the image has attributes that are cut")
    return struct.unpack_from(f"<{count}I", body, XATTR_HEADER_BYTES), body[end:]


def xattr_entry_length(head: bytes) -> int:
    """Return the length of an attribute's entry with its padding, from its first bytes."""
    name, _, value = _XATTR_ENTRY.unpack_from(head)
    length = XATTR_ENTRY_BYTES + int(name) + int(value)
    return length + -length % 4


def read_xattr_entries(data: bytes) -> dict[bytes, bytes]:
    """Read attributes, each by its name."""
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(data):
        if at + XATTR_ENTRY_BYTES > len(data):
            raise DamagedError("the image has an attribute that is cut")
        name_bytes, index, value_bytes = _XATTR_ENTRY.unpack_from(data, at)
        begin = at + XATTR_ENTRY_BYTES
        end = begin + name_bytes + value_bytes
        if index not in _PREFIXES or end > len(data):
            raise DamagedError("the image has an attribute that ramet wouldn't write")
        found[_PREFIXES[index] + data[begin : begin + name_bytes]] = data[begin + name_bytes : end]
        at = end + -end % 4
    return found
