"""A small reader of EROFS, written from `fs/erofs/erofs_fs.h` alone: nothing of the writer is used."""

from __future__ import annotations

import stat
import struct
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

BLOCK = 4096
PREFIXES = {
    1: b"user.",
    2: b"system.posix_acl_access",
    3: b"system.posix_acl_default",
    4: b"trusted.",
    6: b"security.",
}


class File(NamedTuple):
    mode: int
    uid: int
    gid: int
    mtime: tuple[int, int]
    links: int
    nid: int
    layout: int
    device: tuple[int, int]
    data: bytes
    """Contents, a link's target, or nothing."""
    xattrs: dict[bytes, bytes]


def crc(data: bytes) -> int:
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    return register


class Reader:
    def __init__(self, image: bytes, *devices: bytes) -> None:
        self.image, self.devices = image, devices
        sb = image[1024:1152]
        self.magic, self.checksum, self.compat = struct.unpack_from("<III", sb)
        assert self.magic == 0xE0F5E1E2
        assert self.compat & 1
        assert sb[12] == 12
        zeroed = image[1024:1028] + bytes(4) + image[1032:BLOCK]
        assert crc(zeroed) == self.checksum
        (self.root,) = struct.unpack_from("<H", sb, 14)
        (self.inodes,) = struct.unpack_from("<Q", sb, 16)
        self.blocks, meta, self.xattr_block = struct.unpack_from("<III", sb, 36)
        assert meta == 0
        assert self.blocks * BLOCK == len(image)
        (self.incompat,) = struct.unpack_from("<I", sb, 80)
        count, slot = struct.unpack_from("<HH", sb, 86)
        assert count == len(devices)
        self.device_blocks = [
            struct.unpack_from("<I", image, (slot + number) * 128 + 64)[0] for number in range(count)
        ]
        for number in range(count):
            assert not any(image[(slot + number) * 128 : (slot + number) * 128 + 64])

    def file(self, nid: int) -> File:
        at = nid * 32
        form, icount, mode, _, size, place, _ino, uid, gid, mtime, ns, links = struct.unpack_from(
            "<HHHHQIIIIqII", self.image, at
        )
        assert form & 1
        layout = form >> 1
        behind = at + 64
        xattrs = {}
        if icount:
            end = behind + 12 + 4 * (icount - 1)
            xattrs = self._xattrs(behind, end)
            behind = end
        kind = stat.S_IFMT(mode)
        data, device = b"", (0, 0)
        if kind in (stat.S_IFCHR, stat.S_IFBLK):
            device = (place >> 8 & 0xFFF, place & 0xFF | place >> 12 & 0xFFF00)
        elif kind in (stat.S_IFREG, stat.S_IFLNK, stat.S_IFDIR):
            data = self._data(layout, size, place, behind)
        return File(mode, uid, gid, (mtime, ns), links, nid, layout, device, data, xattrs)

    def _data(self, layout: int, size: int, place: int, behind: int) -> bytes:
        match layout:
            case 0:
                assert size == 0 or 0 < place < self.blocks
                assert place * BLOCK + size <= len(self.image)
                return self.image[place * BLOCK : place * BLOCK + size]
            case 2:
                tail = size % BLOCK
                assert tail
                assert behind // BLOCK == (behind + tail - 1) // BLOCK  # else Linux calls it corrupt
                front = self.image[place * BLOCK : place * BLOCK + size - tail]
                return front + self.image[behind : behind + tail]
            case 4:
                assert place == 31 | 0x20
                advise, device, block = struct.unpack_from("<HHI", self.image, behind + -behind % 8)
                assert advise == 0
                assert block + -(-size // BLOCK) <= self.device_blocks[device - 1]
                blob: bytes = self.devices[device - 1]
                return blob[block * BLOCK : block * BLOCK + size]
        raise AssertionError(layout)

    def _xattrs(self, at: int, end: int) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        shared = self.image[at + 4]
        for number in range(shared):
            (index,) = struct.unpack_from("<I", self.image, at + 12 + 4 * number)
            self._entry(self.xattr_block * BLOCK + 4 * index, found)
        at += 12 + 4 * shared
        while at < end:
            at = self._entry(at, found)
        assert at == end
        return found

    def _entry(self, at: int, found: dict[bytes, bytes]) -> int:
        length: int
        size: int
        length, index, size = struct.unpack_from("<BBH", self.image, at)
        name = PREFIXES[index] + self.image[at + 4 : at + 4 + length]
        assert name not in found
        found[name] = self.image[at + 4 + length : at + 4 + length + size]
        return at + 4 + length + size + -(length + size) % 4

    def names(self, data: bytes) -> Iterator[tuple[bytes, int, int]]:
        for start in range(0, len(data), BLOCK):
            block = data[start : start + BLOCK]
            (first,) = struct.unpack_from("<H", block, 8)
            assert first % 12 == 0
            entries = [struct.unpack_from("<QHBx", block, 12 * number) for number in range(first // 12)]
            ends = [entry[1] for entry in entries[1:]] + [len(block)]
            for (nid, name_at, kind), name_end in zip(entries, ends, strict=True):
                yield block[name_at:name_end].rstrip(b"\0"), nid, kind

    def walk(self) -> dict[bytes, File]:
        found: dict[bytes, File] = {}
        pending = [(b"", self.root, self.root)]
        while pending:
            path, nid, parent = pending.pop()
            file = found[path] = self.file(nid)
            if not stat.S_ISDIR(file.mode):
                continue
            listed = list(self.names(file.data))
            names = [name for name, _, _ in listed]
            assert names == sorted(set(names))  # Linux searches by bisection
            for name, child, kind in listed:
                if name == b".":
                    assert child == nid
                elif name == b"..":
                    assert child == parent
                else:
                    mode = self.file(child).mode
                    kinds = {1: stat.S_IFREG, 2: stat.S_IFDIR, 3: stat.S_IFCHR, 4: stat.S_IFBLK}
                    kinds |= {5: stat.S_IFIFO, 7: stat.S_IFLNK}
                    assert kinds[kind] == stat.S_IFMT(mode)
                    pending.append((path + b"/" + name if path else name, child, nid))
        assert len({file.nid for file in found.values()}) == self.inodes
        names_of = Counter(file.nid for file in found.values())
        for file in found.values():
            if not stat.S_ISDIR(file.mode):
                assert file.links == names_of[file.nid]
        return found
