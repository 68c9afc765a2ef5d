"""Extended attributes: beside the inode, or once for all inodes that have the same.

Source: Documentation/filesystems/erofs.rst, "Shared xattrs metadata space".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

from ramet.images.erofs.format import xattr_entry, xattr_header
from ramet.images.layers.tree import Node

_NUMBER_BYTES: Final = 4
_SHARED_LIMIT: Final = 255
"""Shared attributes per inode: their count is one byte."""


class Xattrs:
    """The attributes of an image's inodes, given in the order in which the image has them."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        uses: Counter[bytes] = Counter()
        for node in nodes:
            uses.update(_entries(node))
        self._numbers: dict[bytes, int] = {}
        area = bytearray()
        for entry, count in uses.items():
            if len(entry) * (count - 1) > _NUMBER_BYTES * count:
                self._numbers[entry] = len(area) // 4
                area += entry
        self.shared = bytes(area)
        """The area of shared attributes."""

    def body(self, node: Node) -> bytes:
        """Return what follows the node's inode: empty, or a header, numbers of shared attributes, others."""
        entries = _entries(node)
        if not entries:
            return b""
        shared = sorted((self._numbers[entry], entry) for entry in entries if entry in self._numbers)
        taken = {entry for _, entry in shared[:_SHARED_LIMIT]}
        numbers = [number for number, _ in shared[:_SHARED_LIMIT]]
        return xattr_header(numbers) + b"".join(entry for entry in entries if entry not in taken)


def _entries(node: Node) -> list[bytes]:
    return [xattr_entry(name, value) for name, value in sorted((node.xattrs or {}).items())]
