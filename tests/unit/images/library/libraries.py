"""Libraries for tests, images to build, and what a guest would see of them."""

from __future__ import annotations

import random
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from ramet.images.erofs.blob import BLOCK_BYTES
from ramet.images.library.library import Library
from ramet.images.library.records import ContainerImage, Layer, Material
from ramet.memory.integrity import digest
from ramet.model.container import ImageConfig
from tests.unit.images.erofs_reader import Reader
from tests.unit.images.layer_tars import member, tar
from tests.unit.oci.registry_server import digest_of

SHARED_FROM = 64 * 1024
"""The size from which layers are shared in these tests."""
CONFIG = ImageConfig(cmd=("true",))


def library_in(directory: Path) -> Library:
    return Library(directory / "images", part_digest=digest)


def layer_of(name: str, size_bytes: int, *, files: int = 4) -> bytes:
    """A layer with large files of that size together, and a few small ones."""
    draw = random.Random(name)
    return tar(
        [
            member(name, tarfile.DIRTYPE, mode=0o755),
            *[
                member(f"{name}/large{n}", data=draw.randbytes(size_bytes // files), mtime="7")
                for n in range(files)
            ],
            *[member(f"{name}/small{n}", data=f"{name} {n}".encode(), owner=(n, n)) for n in range(3)],
        ]
    )


def material_of(
    layers: Sequence[bytes], *, digest: str | None = None, opened: list[int] | None = None
) -> Material:
    """The material of an image; `opened` gets the numbers of the layers that were opened."""

    def chunks(number: int) -> Iterator[bytes]:
        if opened is not None:
            opened.append(number)
        for at in range(0, len(layers[number]), 30_000):
            yield layers[number][at : at + 30_000]

    return Material(
        CONFIG,
        [
            Layer(
                f"layer {number}",
                digest_of(layer),
                lambda number=number: chunks(number),  # type: ignore[misc]
                len(layer),
                digest_of(layer),
            )
            for number, layer in enumerate(layers)
        ],
        digest,
        "a test",
        "linux/amd64",
    )


def seen(image: ContainerImage) -> dict[bytes, object]:
    """All files of an image, as a mount of its devices shows them."""
    devices = [image.path_of(base).read_bytes()[:-BLOCK_BYTES] for base in image.bases]
    return dict(Reader(devices[0], *devices[1:]).walk())


def bytes_in(directory: Path) -> int:
    """The bytes that the files below a directory occupy, each inode once."""
    facts = {
        (fact.st_dev, fact.st_ino): fact.st_blocks * 512
        for fact in (path.lstat() for path in directory.rglob("*") if path.is_file())
    }
    return sum(facts.values())
