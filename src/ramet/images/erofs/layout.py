"""The plan of an image: where each inode and its data will lie. It depends on the tree alone.

First block | inodes, each with its attributes and small data | shared attributes | data. Data of regular
files begins at a block, and files above one block have no inline tail, so that DAX can map them
(`erofs_should_use_dax`, `fs/erofs/inode.c`). Inline data never crosses a block, as Linux wants.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ramet.errors import UnavailableError
from ramet.images.erofs.directories import directory_size
from ramet.images.erofs.format import (
    BLOCK_BYTES,
    BLOCK_LIMIT,
    CHUNK_INDEX_BYTES,
    INODE_BYTES,
    SLOT_BYTES,
    DataLayout,
)
from ramet.images.erofs.xattrs import Xattrs
from ramet.images.layers.tree import Node


class Place:
    """The place of an inode."""

    __slots__ = ("block", "layout", "links", "node", "offset_bytes", "parent", "size_bytes")

    def __init__(self, node: Node, parent: Node) -> None:
        self.node = node
        self.parent = parent
        """The directory of its first name, for `..`; the root's own for the root."""
        self.links = 1
        self.size_bytes = 0
        self.layout = DataLayout.PLAIN
        self.offset_bytes = 0
        self.block = 0
        """The first of its blocks, in the image or in its device; 0 if it has none."""

    @property
    def nid(self) -> int:
        """The inode's number."""
        return self.offset_bytes // SLOT_BYTES

    @property
    def block_bytes(self) -> int:
        """Bytes of its data that lie in blocks of the image."""
        match self.layout:
            case DataLayout.PLAIN:
                return self.size_bytes
            case DataLayout.INLINE:
                return self.size_bytes - self.size_bytes % BLOCK_BYTES
            case DataLayout.CHUNKED:
                return 0


@dataclass(slots=True)
class Layout:
    """A whole image's plan."""

    places: list[Place]
    xattrs: Xattrs
    devices: Mapping[int, int]
    """The device's number, from 1, of each layer whose pages are a separate device."""
    shared_block: int = 0
    """Where shared attributes begin; 0 if there are none."""
    data_block: int = 0
    blocks: int = 0
    _by_node: dict[int, Place] = field(default_factory=dict)

    def nid_of(self, node: Node) -> int:
        """Return the inode number of a node of the tree."""
        return self._by_node[id(node)].nid


def plan(root: Node, devices: Mapping[int, int]) -> Layout:
    """Plan an image of that tree. Raises `UnavailableError` if it is too large for EROFS."""
    places, by_node = _places(root)
    layout = Layout(places, Xattrs(place.node for place in places), devices, _by_node=by_node)
    position = BLOCK_BYTES
    for place in places:
        position = _place(place, position, layout)
    block = -(-position // BLOCK_BYTES)
    if layout.xattrs.shared:
        layout.shared_block = block
        block += -(-len(layout.xattrs.shared) // BLOCK_BYTES)
    layout.data_block = block
    for place in places:
        if count := -(-place.block_bytes // BLOCK_BYTES):
            place.block = block
            block += count
    if block >= BLOCK_LIMIT:
        raise UnavailableError("the image is larger than 16 TiB, which is too large for EROFS")
    layout.blocks = block
    return layout


def _places(root: Node) -> tuple[list[Place], dict[int, Place]]:
    """Return a place for each node, in the order of the first names, and the nodes' links counted."""
    places: list[Place] = []
    by_node: dict[int, Place] = {}
    for node, parent in _named(root):
        if (place := by_node.get(id(node))) is not None:
            place.links += 1
            continue
        place = by_node[id(node)] = Place(node, parent)
        if node.children is not None:
            place.links = 2 + sum(child.children is not None for child in node.children.values())
        places.append(place)
    return places, by_node


def _named(root: Node) -> Iterator[tuple[Node, Node]]:
    pending = [(root, root)]
    while pending:
        node, parent = pending.pop()
        yield node, parent
        for name in sorted(node.children or (), reverse=True):
            assert node.children is not None
            pending.append((node.children[name], node))


def _place(place: Place, position: int, layout: Layout) -> int:
    """Place the inode at `position` or a little behind it. Returns the next free position."""
    node = place.node
    length = INODE_BYTES + len(layout.xattrs.body(node))
    if node.children is not None:
        place.size_bytes = directory_size(node)
    elif node.file_type == stat.S_IFLNK:
        place.size_bytes = len(node.link)
    else:
        place.size_bytes = node.size_bytes
    tail = place.size_bytes % BLOCK_BYTES
    content = node.content
    if content is not None and content.is_paged and content.layer in layout.devices:
        place.layout = DataLayout.CHUNKED
        place.block = content.offset_bytes // BLOCK_BYTES
        length += -length % CHUNK_INDEX_BYTES + CHUNK_INDEX_BYTES
    elif tail and length + tail <= BLOCK_BYTES and (content is None or place.size_bytes < BLOCK_BYTES):
        place.layout = DataLayout.INLINE
        length += tail
    if length <= BLOCK_BYTES < position % BLOCK_BYTES + length:
        position += -position % BLOCK_BYTES
    place.offset_bytes = position
    position += length
    return position + -position % SLOT_BYTES
