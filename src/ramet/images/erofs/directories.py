"""Directories: blocks of entries, each with its names behind them, in the order of the names' bytes.

Source: Documentation/filesystems/erofs.rst, "Directories". A name never crosses a block, and the order, over
`.` and `..` too, is what Linux's binary search wants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from ramet.images.erofs.format import BLOCK_BYTES, DIRENT_BYTES, directory_entry
from ramet.images.layers.tree import Node


def directory_size(directory: Node) -> int:
    """Return the directory's length in bytes; all its blocks but the last count as full."""
    size = used = 0
    for group in _groups(_names(directory)):
        used = _length(group)
        size += BLOCK_BYTES
    return size - BLOCK_BYTES + used


def directory_bytes(directory: Node, parent: Node, nid_of: Callable[[Node], int]) -> bytes:
    """Return the directory's content, `directory_size` bytes of it."""
    files = dict(directory.children or {})
    files[b"."], files[b".."] = directory, parent
    blocks: list[bytes] = []
    for group in _groups(_names(directory)):
        entries, at = [], DIRENT_BYTES * len(group)
        for name in group:
            entries.append(directory_entry(nid_of(files[name]), at, files[name].file_type))
            at += len(name)
        blocks.append(b"".join((*entries, *group)))
    return b"".join(block.ljust(BLOCK_BYTES, b"\0") for block in blocks[:-1]) + blocks[-1]


def _names(directory: Node) -> list[bytes]:
    return sorted([b".", b"..", *(directory.children or ())])


def _groups(names: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Yield the names of each block."""
    group: list[bytes] = []
    used = 0
    for name in names:
        if used + DIRENT_BYTES + len(name) > BLOCK_BYTES:
            yield group
            group, used = [], 0
        group.append(name)
        used += DIRENT_BYTES + len(name)
    yield group


def _length(group: list[bytes]) -> int:
    return DIRENT_BYTES * len(group) + sum(map(len, group))
