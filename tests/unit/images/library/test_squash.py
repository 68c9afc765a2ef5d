"""Images packed as one layer: the same files when they are unpacked again, by our reader and by Python's."""

from __future__ import annotations

import gzip
import hashlib
import io
import random
import stat
import tarfile
from pathlib import Path

import pytest

from ramet.errors import DamagedError
from ramet.images.erofs.blob import BLOCK_BYTES
from ramet.images.erofs.reader import ErofsReader
from ramet.images.layers import write
from ramet.images.library.library import Library
from ramet.images.library.records import ContainerImage
from ramet.images.library.squash import squash
from tests.unit.images.erofs_reader import Reader
from tests.unit.images.layer_tars import member, tar
from tests.unit.images.library.libraries import layer_of, library_in, material_of, seen
from tests.unit.images.test_erofs import nasty_layers

pytestmark = pytest.mark.anyio


async def added(library: Library, *layers: bytes, name: str = "x:1") -> ContainerImage:
    return await library.add(material_of(layers), name=name, is_local=True)


def facts_of(image: ContainerImage) -> dict[bytes, object]:
    """All of an image's files that doesn't depend on where they lie."""
    devices = [image.path_of(base).read_bytes()[:-BLOCK_BYTES] for base in image.bases]
    links: dict[int, bytes] = {}
    return {
        path: (
            (file.mode, file.uid, file.gid, file.mtime, file.device, file.xattrs),
            b"" if stat.S_ISDIR(file.mode) else file.data,
            links.setdefault(file.nid, path),
        )
        for path, file in sorted(Reader(devices[0], *devices[1:]).walk().items())
    }


@pytest.mark.parametrize("kind", ["nasty", "large"])
async def test_all_files_are_there_again(library: Library, tmp_path: Path, kind: str) -> None:
    layers = (
        [tar(layer) for layer in nasty_layers()]
        if kind == "nasty"
        else [layer_of("a", 300_000), layer_of("b", 200_000), tar([member("a/large1", data=b"over" * 9999)])]
    )
    image = await added(library, *layers)
    made = squash(image, tmp_path / "layer")
    content = (tmp_path / "layer").read_bytes()
    inner = gzip.decompress(content)
    assert made.digest == f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert made.diff_id == f"sha256:{hashlib.sha256(inner).hexdigest()}"
    assert (made.size_bytes, made.left_out) == (len(content), 0)
    again = await added(library_in(tmp_path / "again"), inner)
    assert facts_of(again) == facts_of(image)
    assert squash(again, tmp_path / "second")[:3] == made[:3]  # the same bytes


async def test_other_readers_see_the_same_names(library: Library, tmp_path: Path) -> None:
    image = await added(library, *[tar(layer) for layer in nasty_layers()])
    squash(image, tmp_path / "layer")
    with tarfile.open(tmp_path / "layer", encoding="utf-8", errors="surrogateescape") as archive:
        names = {item.name.encode("utf-8", "surrogateescape").removeprefix(b".") for item in archive}
    assert names == {path for path in seen(image) if not path.startswith(b".")} | {
        path.removeprefix(b".") for path in seen(image) if path.startswith(b".")
    }


async def test_devices_that_were_cut_or_changed_are_damage(library: Library, tmp_path: Path) -> None:
    image = await added(library, *[tar(layer) for layer in nasty_layers()], layer_of("a", 300_000))
    own = image.path_of(image.bases[0])
    whole = own.read_bytes()
    own.chmod(0o600)
    draw = random.Random(1)
    for number in range(40):
        broken = bytearray(whole)
        for _ in range(draw.randrange(1, 40)):
            broken[draw.randrange(BLOCK_BYTES, len(whole))] = draw.randrange(256)
        own.write_bytes(broken[: draw.randrange(len(whole))] if number % 3 == 0 else broken)
        try:
            squash(image, tmp_path / f"layer{number}")
        except DamagedError:
            pass
    own.write_bytes(b"\0" * len(whole))
    with pytest.raises(DamagedError, match="first block"):
        squash(image, tmp_path / "layer")


def test_large_numbers_and_times_before_1970_are_exact() -> None:
    header = write.entry(
        b"x" * 300,
        stat.S_IFREG | 0o6755,
        size_bytes=9 << 30,
        owner=(2_000_000_000, 0o7777777),
        mtime=(-2, 500_000_000),
        xattrs={b"user.k": b"a\nb=\0\xff"},
    )
    (info,) = [tarfile.TarFile(fileobj=io.BytesIO(header + bytes(1024))).next()]
    assert info is not None
    assert (info.name, info.mode, info.size) == ("x" * 300, 0o6755, 9 << 30)
    assert (info.uid, info.gid, info.mtime) == (2_000_000_000, 0o7777777, -1.5)
    assert b"SCHILY.xattr.user.k=a\nb=\0\xff\n" in header


async def test_the_reader_wants_as_many_devices_as_the_image_has(library: Library) -> None:
    image = await added(library, layer_of("a", 300_000))
    assert len(image.bases) == 2
    with image.path_of(image.bases[0]).open("rb") as own, pytest.raises(DamagedError, match="devices"):
        ErofsReader(own.fileno())
