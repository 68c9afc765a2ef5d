"""The writer: an image from front to back, hashed on the way, in bounded memory."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ramet.errors import UsageError
from ramet.images.erofs.directories import directory_bytes
from ramet.images.erofs.format import (
    BLOCK_BYTES,
    CHUNK_INDEX_BYTES,
    CHUNK_PLACE,
    DEVICE_LIMIT,
    ROOT_NID_LIMIT,
    DataLayout,
    chunk_index,
    device_number,
    first_block,
    inode,
)
from ramet.images.erofs.layout import Layout, Place, plan
from ramet.images.layers.contents import LayerContents
from ramet.images.layers.tree import Node
from ramet.progress import report
from ramet.system import threads
from ramet.system.files import write_all
from ramet.units import MIB

_BUFFER_BYTES: Final = 1 * MIB
_ZEROS: Final = bytes(_BUFFER_BYTES)


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """A written image."""

    size_bytes: int
    digest: str
    """`sha256:` and 64 digits, of the image's own file."""
    inodes: int
    devices: tuple[int, ...]
    """The layers whose pages are separate devices, in the order of the mount's `device=` options."""


def write_image(
    root: Node, contents: Mapping[int, LayerContents], output: int, *, devices: Sequence[int] = ()
) -> ImageFacts:
    """Write an image of the tree into the empty file `output`. The same tree gives the same bytes.

    `contents` has the spool of each layer, by number. Pages of the layers in `devices` stay out of the image:
    a mount needs the blobs of these layers, in this order. The file isn't synced. Raises `OSError`,
    `UnavailableError` for an image beyond 16 TiB, `UsageError` for more devices than the table holds;
    `output` is incomplete then.
    """
    if len(devices) > DEVICE_LIMIT:
        raise UsageError(f"an image has {DEVICE_LIMIT} further devices at most, not {len(devices)}")
    layout = plan(root, {layer: number for number, layer in enumerate(devices, start=1)})
    out = _Output(output, layout.blocks * BLOCK_BYTES)
    root_nid = layout.nid_of(root)
    assert root_nid < ROOT_NID_LIMIT  # the first inode
    out.write(
        first_block(
            root_nid=root_nid,
            inodes=len(layout.places),
            blocks=layout.blocks,
            xattr_block=layout.shared_block,
            device_blocks=[contents[layer].blocks for layer in devices],
        )
    )
    for number, place in enumerate(layout.places, start=1):
        out.zeros_to(place.offset_bytes)
        _write_inode(out, number, place, layout, contents)
    if layout.shared_block:
        out.zeros_to(layout.shared_block * BLOCK_BYTES)
        out.write(layout.xattrs.shared)
    for place in layout.places:
        if place.layout != DataLayout.CHUNKED and place.block:
            out.zeros_to(place.block * BLOCK_BYTES)
            left = place.block_bytes
            for piece in _data(place, layout, contents):
                out.write(piece[:left])
                left -= min(left, len(piece))
    out.zeros_to(layout.blocks * BLOCK_BYTES)
    digest = out.finish()
    return ImageFacts(layout.blocks * BLOCK_BYTES, digest, len(layout.places), tuple(devices))


def _write_inode(
    out: _Output, number: int, place: Place, layout: Layout, contents: Mapping[int, LayerContents]
) -> None:
    node = place.node
    body = layout.xattrs.body(node)
    where = place.block
    if place.layout == DataLayout.CHUNKED:
        where = CHUNK_PLACE
    elif node.file_type in (stat.S_IFCHR, stat.S_IFBLK):
        where = device_number(*node.device)
    out.write(
        inode(
            layout=place.layout,
            xattr_bytes=len(body),
            mode=node.file_type | node.permissions,
            size_bytes=place.size_bytes,
            place=where,
            number=number,
            owner=(node.uid, node.gid),
            mtime=node.mtime,
            links=place.links,
        )
    )
    out.write(body)
    if place.layout == DataLayout.CHUNKED:
        assert node.content is not None
        out.zeros_to(out.position + -out.position % CHUNK_INDEX_BYTES)
        out.write(chunk_index(layout.devices[node.content.layer], place.block))
    elif place.layout == DataLayout.INLINE:
        # Directories only have blocks *and* a tail; they are made whole, in memory.
        data = b"".join(_data(place, layout, contents))
        out.write(data[place.block_bytes :])


def _data(place: Place, layout: Layout, contents: Mapping[int, LayerContents]) -> Iterator[bytes]:
    node = place.node
    if node.children is not None:
        yield directory_bytes(node, place.parent, layout.nid_of)
    elif node.file_type == stat.S_IFLNK:
        yield node.link
    elif node.content is not None:
        yield from contents[node.content.layer].read(node.content)


class _Output:
    """A file written in order. Long runs of zeros become holes."""

    def __init__(self, descriptor: int, total_bytes: int) -> None:
        self.position = 0
        self._total_bytes = total_bytes
        self._descriptor = descriptor
        self._buffer = bytearray()
        self._digest = hashlib.sha256()

    def write(self, data: bytes) -> None:
        self._buffer += data
        self.position += len(data)
        if len(self._buffer) >= _BUFFER_BYTES:
            self._flush()

    def zeros_to(self, position: int) -> None:
        while self.position < position:
            self.write(_ZEROS[: position - self.position])

    def finish(self) -> str:
        self._flush()
        os.ftruncate(self._descriptor, self.position)
        return f"sha256:{self._digest.hexdigest()}"

    def _flush(self) -> None:
        threads.check_cancelled()
        self._digest.update(self._buffer)
        for at in range(0, len(self._buffer), _BUFFER_BYTES):
            piece = bytes(self._buffer[at : at + _BUFFER_BYTES])
            if piece != _ZEROS[: len(piece)]:
                write_all(self._descriptor, piece, self.position - len(self._buffer) + at)
        self._buffer.clear()
        report("writing the image", self.position, self._total_bytes)
