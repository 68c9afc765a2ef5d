"""Layers for tests, made with the standard library's tar writer, and images made of them."""

from __future__ import annotations

import io
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from ramet.images.erofs.image import ImageFacts, write_image
from ramet.images.layers.contents import LayerContents
from ramet.images.layers.limits import DEFAULT_LIMITS, Limits
from ramet.images.layers.merge import Merge
from ramet.images.layers.read import add_layer
from ramet.images.layers.tree import Node

Member = tuple[tarfile.TarInfo, bytes]


def member(
    name: bytes | str,
    kind: bytes = tarfile.REGTYPE,
    data: bytes = b"",
    *,
    mode: int = 0o644,
    link: bytes | str = "",
    device: tuple[int, int] = (0, 0),
    owner: tuple[int, int] = (0, 0),
    mtime: str = "0",
    xattrs: dict[bytes, bytes] | None = None,
) -> Member:
    info = tarfile.TarInfo(_text(name))
    info.type, info.size, info.mode, info.linkname = kind, len(data), mode, _text(link)
    info.devmajor, info.devminor = device
    info.uid, info.gid = owner
    info.pax_headers = {"mtime": mtime} if mtime != "0" else {}
    for key, value in (xattrs or {}).items():
        info.pax_headers["SCHILY.xattr." + _text(key)] = _text(value)
    return info, data


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "surrogateescape")


def tar(members: Sequence[Member], form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(
        fileobj=out, mode="w", format=form, encoding="utf-8", errors="surrogateescape"
    ) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


class Merged(NamedTuple):
    root: Node
    contents: dict[int, LayerContents]
    pages: dict[int, IO[bytes]]
    merge: Merge

    def data(self, node: Node) -> bytes:
        return b"".join(self.contents[node.content.layer].read(node.content)) if node.content else b""


@contextmanager
def merged(layers: Sequence[bytes], *, limits: Limits = DEFAULT_LIMITS, step: int = 5000) -> Iterator[Merged]:
    """Merge layers, each fed in pieces of `step` bytes."""
    merge = Merge(limits)
    contents: dict[int, LayerContents] = {}
    pages: dict[int, IO[bytes]] = {}
    small: list[IO[bytes]] = []
    try:
        for number, layer in enumerate(layers):
            pages[number] = tempfile.TemporaryFile()  # noqa: SIM115
            small.append(tempfile.TemporaryFile())  # noqa: SIM115
            contents[number] = LayerContents(number, pages=pages[number].fileno(), small=small[-1].fileno())
            chunks = (layer[at : at + step] for at in range(0, len(layer), step))
            add_layer(merge, contents[number], chunks, name=f"layer {number}", limits=limits)
        yield Merged(merge.root, contents, pages, merge)
    finally:
        for file in (*pages.values(), *small):
            file.close()


def image_of(tree: Merged, path: Path, devices: Sequence[int] = ()) -> ImageFacts:
    with path.open("w+b") as file:
        return write_image(tree.root, tree.contents, file.fileno(), devices=devices)
