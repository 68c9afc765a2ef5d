"""A single pass over a layer: its contents into the spool, its entries into the tree, its digest compared."""

from __future__ import annotations

import stat
from collections.abc import Iterable
from typing import Protocol

from ramet.errors import DamagedError
from ramet.images.layers.contents import LayerContents
from ramet.images.layers.limits import DEFAULT_LIMITS, Limits
from ramet.images.layers.merge import is_marker
from ramet.images.layers.tar_entries import TarEntry, TarReader
from ramet.images.layers.tree import Extent
from ramet.images.layers.unpack import LayerStream


class Receiver(Protocol):
    """Takes the entries of layers: a `Merge`, or what hands them on to it."""

    def begin_layer(self) -> None:
        """Begin the next layer."""

    def add(self, entry: TarEntry, content: Extent | None = None) -> None:
        """Take the layer's next entry, a regular file with the place of its contents unless it is empty."""


def add_layer(
    merge: Receiver,
    contents: LayerContents,
    chunks: Iterable[bytes],
    *,
    name: str,
    diff_id: str | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> str:
    """Add a layer, compressed or not, to the tree and the spool. Returns its diff id.

    Raises `DamagedError`, which begins with `name` (the layer as a user knows it), if the layer is damaged,
    hostile or has another diff id than `diff_id`; `OSError` if the spool can't be written. Tree and spool are
    of no use then.
    """
    try:
        stream = LayerStream(chunks, limits)
        reader = TarReader(stream, limits)
        merge.begin_layer()
        for entry in reader:
            content = None
            if entry.file_type == stat.S_IFREG and not is_marker(entry.name):
                content = contents.store(entry.size_bytes, reader.contents())
            merge.add(entry, content)
        contents.finish()
        actual = stream.finish()
        if diff_id is not None and actual != diff_id:
            raise DamagedError(f"its content has the digest {actual}, not {diff_id}")
    except DamagedError as error:
        raise DamagedError(f"{name} is damaged: {error.message}") from error
    return actual
