"""Headers of a tar archive in the PAX form: the counterpart of `layers.tar_entries`.

The same entries give the same bytes. Sources: pax(1p); the GNU tar manual,
"Storing Sparse Files", version 1.0.
"""

from __future__ import annotations

import stat
from typing import Final

from ramet.images.layers.sparse import Extents
from ramet.images.layers.tar_entries import HARD_LINK, XATTR_PREFIX, TarEntry
from ramet.images.layers.tar_header import BLOCK_BYTES

END: Final = bytes(2 * BLOCK_BYTES)
"""The end of an archive."""
_TYPES: Final = {
    stat.S_IFREG: b"0",
    HARD_LINK: b"1",
    stat.S_IFLNK: b"2",
    stat.S_IFCHR: b"3",
    stat.S_IFBLK: b"4",
    stat.S_IFDIR: b"5",
    stat.S_IFIFO: b"6",
}
_NAME_BYTES: Final = 100
_ID_LIMIT: Final = 8**7
_SIZE_LIMIT: Final = 8**11
_NANOSECONDS: Final = 10**9


def padding(size_bytes: int) -> bytes:
    """Return the zeros that follow data of that length."""
    return bytes(-size_bytes % BLOCK_BYTES)


def encode_header(entry: TarEntry, extents: Extents | None = None) -> bytes:
    """Return the blocks before an entry's data. `extents` is the map of a sparse file, None for other files.

    The data are the bytes of the extents, or all of the file, and then `padding` for the data's whole length.
    The map of a sparse file counts as data and is padded already.
    """
    records = [(b"path", entry.name), (b"mtime", _time(entry.mtime))]
    if entry.link:
        records.append((b"linkpath", entry.link))
    for key, number in ((b"uid", entry.uid), (b"gid", entry.gid)):
        if number >= _ID_LIMIT:
            records.append((key, b"%d" % number))
    sparse_map = b""
    size = entry.size_bytes
    if extents is not None:
        sparse_map = _map(extents)
        size = len(sparse_map) + sum(length for _, length in extents)
        records += [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0")]
        records.append((b"GNU.sparse.realsize", b"%d" % entry.size_bytes))
    if size >= _SIZE_LIMIT:
        records.append((b"size", b"%d" % size))
    records += [(XATTR_PREFIX + key, value) for key, value in sorted(entry.xattrs.items())]
    body = b"".join(_record(key, value) for key, value in records)
    extended = _block(b"PaxHeaders/0", b"x", size=len(body)) + body + padding(len(body))
    return (
        extended
        + _block(
            entry.name[:_NAME_BYTES],
            _TYPES[entry.file_type],
            mode=entry.permissions,
            owner=(entry.uid % _ID_LIMIT, entry.gid % _ID_LIMIT),
            size=size % _SIZE_LIMIT,
            link=entry.link[:_NAME_BYTES],
            device=entry.device,
        )
        + sparse_map
    )


def _block(
    name: bytes,
    kind: bytes,
    *,
    mode: int = 0,
    owner: tuple[int, int] = (0, 0),
    size: int = 0,
    link: bytes = b"",
    device: tuple[int, int] = (0, 0),
) -> bytes:
    fields = b"%s%07o\0%07o\0%07o\0%011o\0%011o\0" % (name.ljust(_NAME_BYTES, b"\0"), mode, *owner, size, 0)
    numbers = b"%07o\0%07o\0" % device
    rest = kind + link.ljust(_NAME_BYTES, b"\0") + b"ustar\x0000" + bytes(64) + numbers
    checksum = sum(fields) + sum(rest) + 8 * 0x20
    return (fields + b"%06o\0 " % checksum + rest).ljust(BLOCK_BYTES, b"\0")


def _record(key: bytes, value: bytes) -> bytes:
    """Encode a record, whose length counts its own digits."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _time(mtime: tuple[int, int]) -> bytes:
    total = mtime[0] * _NANOSECONDS + mtime[1]
    seconds, nanoseconds = divmod(abs(total), _NANOSECONDS)
    return b"%s%d.%09d" % (b"-" if total < 0 else b"", seconds, nanoseconds)


def _map(extents: Extents) -> bytes:
    lines = [b"%d\n" % len(extents), *(b"%d\n%d\n" % extent for extent in extents)]
    text = b"".join(lines)
    return text + padding(len(text))
