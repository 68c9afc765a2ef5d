"""A layer's archive, written: entries as PAX has them, so that names, attributes and sizes are exact.

Sources: POSIX pax, "ustar Interchange Format" and "pax Header Block"; OCI image-spec, layer.md, "File
Attributes" (SCHILY.xattr). The same entries give the same bytes.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from typing import Final

TAR_BLOCK_BYTES: Final = 512
END: Final = bytes(2 * TAR_BLOCK_BYTES)
_TYPES: Final = {
    stat.S_IFREG: b"0",
    stat.S_IFLNK: b"2",
    stat.S_IFCHR: b"3",
    stat.S_IFBLK: b"4",
    stat.S_IFDIR: b"5",
    stat.S_IFIFO: b"6",
}
_HARD_LINK: Final = b"1"
_EXTENDED: Final = b"x"
_NAME_BYTES: Final = 100
_LARGEST_ID: Final = 0o7777777
_LARGEST_SIZE: Final = 0o77777777777
_LARGEST_TIME: Final = 0o77777777777


def can_hold(file_type: int) -> bool:
    """Tell whether an archive can have a file of that type: sockets it can't."""
    return file_type in _TYPES


def entry(
    name: bytes,
    mode: int,
    *,
    size_bytes: int = 0,
    owner: tuple[int, int] = (0, 0),
    mtime: tuple[int, int] = (0, 0),
    target: bytes = b"",
    is_hard_link: bool = False,
    device: tuple[int, int] = (0, 0),
    xattrs: Mapping[bytes, bytes] | None = None,
) -> bytes:
    """Return an entry's header. The contents of a regular file and `padding` follow.

    `target` is a symbolic link's text, or with `is_hard_link` the name of the file that this one is.
    """
    records: dict[bytes, bytes] = {}
    if len(name) > _NAME_BYTES or not name.isascii():
        records[b"path"] = name
    if len(target) > _NAME_BYTES or not target.isascii():
        records[b"linkpath"] = target
    for key, number in ((b"uid", owner[0]), (b"gid", owner[1])):
        if number > _LARGEST_ID:
            records[key] = b"%d" % number
    if size_bytes > _LARGEST_SIZE:
        records[b"size"] = b"%d" % size_bytes
    if mtime[1] or not 0 <= mtime[0] <= _LARGEST_TIME:
        records[b"mtime"] = _time(*mtime)
    for key, value in sorted((xattrs or {}).items()):
        records[b"SCHILY.xattr." + key] = value
    file_type = stat.S_IFMT(mode)
    header = _header(
        name[:_NAME_BYTES],
        stat.S_IMODE(mode),
        tuple(number if number <= _LARGEST_ID else 0 for number in owner),
        size_bytes if size_bytes <= _LARGEST_SIZE else 0,
        mtime[0] if 0 <= mtime[0] <= _LARGEST_TIME else 0,
        _HARD_LINK if is_hard_link else _TYPES[file_type],
        target[:_NAME_BYTES],
        device,
    )
    if not records:
        return header
    extended = b"".join(_record(key, value) for key, value in records.items())
    before = _header(b"PaxHeaders/entry", 0o644, (0, 0), len(extended), 0, _EXTENDED, b"", (0, 0))
    return before + extended + padding(len(extended)) + header


def padding(size_bytes: int) -> bytes:
    """Return the zeros behind contents of that length."""
    return bytes(-size_bytes % TAR_BLOCK_BYTES)


def _record(key: bytes, value: bytes) -> bytes:
    """Return a line `LENGTH KEY=VALUE`, whose length counts itself."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _time(seconds: int, nanoseconds: int) -> bytes:
    sign = b""
    if seconds < 0:
        sign = b"-"
        seconds, nanoseconds = (-seconds - 1, 10**9 - nanoseconds) if nanoseconds else (-seconds, 0)
    return sign + (b"%d.%09d" % (seconds, nanoseconds) if nanoseconds else b"%d" % seconds)


def _header(
    name: bytes,
    permissions: int,
    owner: tuple[int, ...],
    size_bytes: int,
    mtime: int,
    kind: bytes,
    target: bytes,
    device: tuple[int, int],
) -> bytes:
    block = b"".join(
        (
            name.ljust(_NAME_BYTES, b"\0"),
            b"%07o\0%07o\0%07o\0" % (permissions, *owner),
            b"%011o\0%011o\0" % (size_bytes, mtime),
            b" " * 8,
            kind,
            target.ljust(_NAME_BYTES, b"\0"),
            b"ustar\0" + b"00" + bytes(64),
            b"%07o\0%07o\0" % device,
        )
    ).ljust(TAR_BLOCK_BYTES, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]
