"""A reproducible initramfs: the same tree gives the same bytes, for any user, in any place, at any time.

Source: Documentation/driver-api/early-userspace/buffer-format.rst (the kernel's own page on "newc" archives).
"""

from __future__ import annotations

import stat
from pathlib import PurePosixPath
from typing import Final, NamedTuple

_TRAILER: Final = "TRAILER!!!"
_FIELD_LIMIT: Final = 0xFFFFFFFF
_PATH_LIMIT_BYTES: Final = 4096


class _Entry(NamedTuple):
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


class FileTree:
    """A tree of files that belong to root, have no times, and are written in the order of their paths.

    Paths are relative to the guest's `/`. Missing parents are made, with mode 0755. Every adding method
    raises `ValueError` and changes nothing when the path is empty, absolute, leads upwards, is taken by
    something else, or a parent of it is no directory. Adding a directory again sets its mode.
    """

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}

    def directory(self, path: str, mode: int = 0o755) -> None:
        """Add an empty directory with the permission bits `mode`."""
        self._add(path, _Entry(stat.S_IFDIR | mode))

    def file(self, path: str, data: bytes | str, mode: int = 0o644) -> None:
        """Add a regular file; text is encoded as UTF-8. Files of 4 GiB and more don't fit into the format."""
        content = data.encode() if isinstance(data, str) else data
        if len(content) > _FIELD_LIMIT:
            raise ValueError(f"{path} is too large for an initramfs")
        self._add(path, _Entry(stat.S_IFREG | mode, content))

    def symlink(self, path: str, target: str) -> None:
        """Add a symbolic link. The target isn't checked."""
        self._add(path, _Entry(stat.S_IFLNK | 0o777, target.encode()))

    def character_device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        """Add a character device, for use in the guest before devtmpfs is mounted."""
        self._add(path, _Entry(stat.S_IFCHR | mode, device=(major, minor)))

    def __contains__(self, path: str) -> bool:
        return path in self._entries

    def pack(self) -> bytes:
        """Return the tree as a newc archive, padded to a multiple of 512 bytes as cpio(1) does."""
        out = bytearray()
        for inode, path in enumerate(sorted(self._entries, key=lambda path: path.split("/")), start=1):
            _append(out, path, self._entries[path], inode)
        _append(out, _TRAILER, _Entry(0), 0)
        return bytes(out.ljust(-(-len(out) // 512) * 512, b"\0"))

    def _add(self, path: str, entry: _Entry) -> None:
        parts = PurePosixPath(path).parts
        if not parts or path != "/".join(parts) or ".." in parts or "\0" in path or path == _TRAILER:
            raise ValueError(f"{path!r} is not a path inside an initramfs")
        if len(path.encode()) >= _PATH_LIMIT_BYTES:
            raise ValueError(f"{path[:64]!r}… is too long a path")
        parents = ["/".join(parts[:depth]) for depth in range(1, len(parts))]
        for above in parents:
            if above in self._entries and not stat.S_ISDIR(self._entries[above].mode):
                raise ValueError(f"{above} is no directory, so {path} can't be in it")
        taken = self._entries.get(path)
        if taken is not None and not (stat.S_ISDIR(taken.mode) and stat.S_ISDIR(entry.mode)):
            raise ValueError(f"{path} is in the initramfs already")
        for above in parents:
            self._entries.setdefault(above, _Entry(stat.S_IFDIR | 0o755))
        self._entries[path] = entry


def _append(out: bytearray, path: str, entry: _Entry, inode: int) -> None:
    name = path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    major, minor = entry.device
    # In order: inode, mode, uid, gid, links, mtime, size, filesystem (2), device (2), name, check.
    fields = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, major, minor, len(name), 0)
    out += b"070701" + b"".join(b"%08X" % field for field in fields) + name
    out += b"\0" * (-len(out) % 4)
    out += entry.data
    out += b"\0" * (-len(out) % 4)
