"""The merged tree of an image: nodes that know where their contents are, not what they are."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from typing import NamedTuple


class Extent(NamedTuple):
    """Where a regular file's contents lie."""

    layer: int
    """The layer's number, from 0."""
    is_paged: bool
    """In the layer's pages, aligned to one; else in its small files (`contents`)."""
    offset_bytes: int
    size_bytes: int


class Node:
    """A file of any type. One node with several names is a file with hard links."""

    __slots__ = (
        "children",
        "content",
        "device",
        "file_type",
        "gid",
        "is_cleaned",
        "link",
        "mtime",
        "permissions",
        "uid",
        "upper",
        "xattrs",
    )

    def __init__(self, file_type: int, permissions: int = 0o755) -> None:
        self.file_type = file_type
        """`stat.S_IFREG` and its like."""
        self.permissions = permissions
        self.uid = 0
        self.gid = 0
        self.mtime = (0, 0)
        self.device = (0, 0)
        self.link = b""
        self.content: Extent | None = None
        """Of a regular file that isn't empty."""
        self.xattrs: dict[bytes, bytes] | None = None
        self.children: dict[bytes, Node] | None = {} if file_type == stat.S_IFDIR else None
        """Of a directory."""
        self.upper: set[bytes] | None = None
        """While a layer is merged: the names in this directory that it wrote, or wrote below."""
        self.is_cleaned = False
        """While a layer is merged: it hid what lower layers had in this directory."""

    @property
    def size_bytes(self) -> int:
        """The length of a regular file's contents."""
        return self.content.size_bytes if self.content else 0


def walk(root: Node) -> Iterator[tuple[bytes, Node]]:
    """Yield each name's (path, node): parents first, names in the order of their bytes, the root as b""."""
    pending = [(b"", root)]
    while pending:
        path, node = pending.pop()
        yield path, node
        for name in sorted(node.children or (), reverse=True):
            assert node.children is not None
            pending.append((path + b"/" + name if path else name, node.children[name]))
