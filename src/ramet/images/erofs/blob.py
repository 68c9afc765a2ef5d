"""Blobs: the pages of one layer as a separate device, which all images with that layer share.

A guest that mounts an image with the wrong devices reads wrong data without any error (Linux 6.18 was tried).
So a blob ends with a mark that says whose pages it has, and the agent compares it before it mounts.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final

from ramet.images.layers.contents import BLOCK_BYTES as BLOCK_BYTES
from ramet.images.layers.contents import LayerContents
from ramet.system.files import write_all
from ramet.units import MIB

FORMAT_VERSION: Final = 1
"""Of blobs: another order of pages, or another mark, is another version."""
SHARED_FROM_BYTES: Final = 16 * MIB
SHARED_LAYERS_LIMIT: Final = 5
"""With the image itself six devices; some releases of Firecracker have 17 in all."""
_MARK: Final = struct.Struct("<16sIxxxxQ32s")
_MAGIC: Final = b"ramet-layer-blob"


def shared_layers(blocks: Mapping[int, int]) -> tuple[int, ...]:
    """Choose the layers, by number, whose pages become blobs, from each layer's length in blocks.

    A layer's size decides, so that images agree; an image with more large layers than devices takes the
    largest, the lower first if they are equal. Ascending.
    """
    large = [layer for layer, count in blocks.items() if count * BLOCK_BYTES >= SHARED_FROM_BYTES]
    large.sort(key=lambda layer: (-blocks[layer], layer))
    return tuple(sorted(large[:SHARED_LAYERS_LIMIT]))


def mark(blocks: int, digest: str) -> bytes:
    """Return the last block of a blob with `blocks` blocks of pages and their digest (`sha256:…`)."""
    raw = bytes.fromhex(digest.removeprefix("sha256:"))
    return _MARK.pack(_MAGIC, FORMAT_VERSION, blocks, raw).ljust(BLOCK_BYTES, b"\0")


def seal(contents: LayerContents, pages: int) -> int:
    """Append the mark to a layer's finished pages, which are a blob then. Returns its size in bytes.

    The image's pages can still be read from it. The file isn't synced. Raises `OSError`.
    """
    write_all(pages, mark(contents.blocks, contents.digest), contents.blocks * BLOCK_BYTES)
    return (contents.blocks + 1) * BLOCK_BYTES
