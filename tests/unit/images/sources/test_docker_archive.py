"""Archives of `docker save` and `podman save`, old and new, compressed or not, from files and pipes."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import re
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from ramet.errors import DamagedError, FilesystemError, NotFoundError, UsageError
from ramet.images.library.library import Library
from ramet.images.sources.load import import_image
from tests.unit.images.library.libraries import seen
from tests.unit.images.sources.archives import LAYERS, archive, docker_save

pytestmark = pytest.mark.anyio

COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, 1),
    "zstd": zstandard.ZstdCompressor(level=1).compress,
    "xz": lambda data: lzma.compress(data, preset=0),
    "bzip2": lambda data: bz2.compress(data, 1),
}


@pytest.mark.parametrize("oci", [False, True], ids=["old", "oci"])
@pytest.mark.parametrize("compression", [None, *COMPRESSIONS])
async def test_an_archive_becomes_its_image(
    library: Library, tmp_path: Path, oci: bool, compression: str | None
) -> None:
    source = archive(docker_save({"team/app:1": LAYERS}, oci=oci), tmp_path / "saved")
    if compression:
        source.write_bytes(COMPRESSIONS[compression](source.read_bytes()))
    image = (await import_image(library, source)).image
    assert image.name == "team/app:1"
    assert image.config.cmd == ("/bin/tool",)
    assert set(seen(image)) == {b"", b"etc", b"etc/motd", b"bin", b"bin/tool"}
    assert list(library._places.root.glob(".making-*")) == []


@pytest.mark.parametrize("compression", [None, "gzip"])
async def test_an_archive_may_come_through_a_pipe(
    library: Library, tmp_path: Path, compression: str | None
) -> None:
    data = archive(docker_save({"app:1": LAYERS}), tmp_path / "saved").read_bytes()
    reading, writing = os.pipe()
    packed = COMPRESSIONS[compression](data) if compression else data

    def feed() -> None:
        with open(writing, "wb") as pipe:  # noqa: PTH123 - a descriptor
            pipe.write(packed)

    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        image = (await import_image(library, "-", stdin=reading)).image
    finally:
        os.close(reading)
        feeder.join()
    assert image.name == "app:1"
    assert b"bin/tool" in seen(image)


@pytest.mark.parametrize("oci", [False, True], ids=["old", "oci"])
async def test_several_images_are_chosen_by_tag(library: Library, tmp_path: Path, oci: bool) -> None:
    contents = docker_save({"app:1": LAYERS, "app:2": LAYERS[:1]}, oci=oci)
    source = archive(contents, tmp_path / "saved.tar")
    with pytest.raises(UsageError, match=r"has 2 images: app:1, app:2 \(say which one"):
        await import_image(library, source)
    with pytest.raises(NotFoundError, match=r"has no image 'app:3': it has app:1, app:2"):
        await import_image(library, source, ref="app:3")
    image = (await import_image(library, source, ref="app:2")).image
    assert image.name == "app:2"
    assert b"bin" not in seen(image)
    assert (
        await import_image(library, source, ref="docker.io/library/app:1", name="x")
    ).image.name == "x:latest"


async def test_a_layer_that_two_images_share_may_be_a_link(library: Library, tmp_path: Path) -> None:
    """As Docker up to release 24 and podman write it."""
    contents = docker_save({"app:1": LAYERS})
    first = next(name for name in contents if name.endswith("/layer.tar"))
    digits = "e" * 64
    source = tmp_path / "saved.tar"
    with tarfile.open(source, "w") as made:
        for name, data in contents.items():
            info = tarfile.TarInfo(f"{digits}.tar" if name == first else name)
            info.size = len(data)
            made.addfile(info, io.BytesIO(data))
        info = tarfile.TarInfo(first)
        info.type, info.linkname = tarfile.SYMTYPE, f"../{digits}.tar"
        made.addfile(info)
    assert b"etc/motd" in seen((await import_image(library, source)).image)


async def test_an_image_without_a_tag_is_known_by_its_digest(library: Library, tmp_path: Path) -> None:
    contents = docker_save({"app:1": LAYERS, "app:2": LAYERS[:1]})
    listed = json.loads(contents["manifest.json"])
    for image in listed:
        image["RepoTags"] = None
    contents["manifest.json"] = json.dumps(listed).encode()
    source = archive(contents, tmp_path / "saved.tar")
    digits = listed[1]["Config"][:64]
    with pytest.raises(UsageError, match=digits[:12]):
        await import_image(library, source)
    image = (await import_image(library, source, ref=digits[:12])).image
    assert (image.name, image.digest) == ("saved:latest", f"sha256:{digits}")


@pytest.mark.parametrize(
    ("harm", "error"),
    [
        ("config", "configuration of .* isn't what its name"),
        ("layer", r"layer 1 of .* is damaged: its content has the digest"),
        ("no layer", r"has no '?[0-9a-f]{64}/layer.tar"),
        ("no config", r"has no [0-9a-f]{64}\.json"),
        ("layers", "has 0 layers"),
        ("count", "has 2 layers, its manifest 1"),
        ("json", "manifest.json of .* is malformed"),
        ("none", "has no image"),
        ("upwards", "has no ../../etc/passwd"),
    ],
)
async def test_a_damaged_archive_is_one_error(
    library: Library, tmp_path: Path, harm: str, error: str
) -> None:
    contents = docker_save({"app:1": LAYERS})
    config = next(name for name in contents if name.endswith(".json") and name != "manifest.json")
    layer = next(name for name in contents if name.endswith("layer.tar"))
    listed = json.loads(contents["manifest.json"])
    match harm:
        case "config":
            contents[config] += b" "
        case "layer":
            contents[layer] = LAYERS[1]
        case "no layer":
            del contents[layer]
        case "no config":
            del contents[config]
        case "layers":
            listed[0]["Layers"] = []
        case "count":
            listed[0]["Layers"].pop()
        case "none":
            listed = []
        case "upwards":
            listed[0]["Layers"][0] = "../../etc/passwd"
    contents["manifest.json"] = b"{" if harm == "json" else json.dumps(listed).encode()
    with pytest.raises(DamagedError, match=error):
        await import_image(library, archive(contents, tmp_path / "saved.tar"))
    assert library.images() == []


def entry(name: str, kind: bytes = tarfile.REGTYPE, *, link: str = "", size: int = 0) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("extra", "error"),
    [
        (entry("../x"), r"'\.\./x': its name leads out"),
        (entry("/etc/passwd"), r"'/etc/passwd': its name leads out"),
        (
            entry("a/layer.tar", tarfile.SYMTYPE, link="../../x"),
            r"'a/layer\.tar': it is a link that leads out",
        ),
        (entry("dev", tarfile.CHRTYPE), r"'dev': it is of the type b'3'"),
        (entry("huge", size=10 * 2**40), r"'huge': the archive is cut short in it"),
        (entry("x" * 64, tarfile.XHDTYPE, size=2**31), "an extended header is too large"),
        (b"\xff" * 512, "checksum|no number"),
    ],
)
@pytest.mark.parametrize("compressed", [False, True])
async def test_hostile_archives_are_one_error(
    library: Library, tmp_path: Path, extra: bytes, error: str, compressed: bool
) -> None:
    data = archive(docker_save({"app:1": LAYERS}), tmp_path / "saved.tar").read_bytes()
    source = tmp_path / "hostile.tar"
    body = data.rstrip(b"\0")
    body += bytes(-len(body) % 512) + extra + bytes(1024)
    source.write_bytes(gzip.compress(body) if compressed else body)
    with pytest.raises(DamagedError, match=error) as caught:
        await import_image(library, source)
    assert "hostile.tar" in caught.value.message
    assert list(library._places.root.glob(".making-*")) == []


async def test_links_in_a_circle_end(library: Library, tmp_path: Path) -> None:
    contents = docker_save({"app:1": LAYERS[:1]})
    layer = next(name for name in contents if name.endswith("layer.tar"))
    source = tmp_path / "saved.tar"
    with tarfile.open(source, "w") as made:
        for name, data in contents.items():
            info = tarfile.TarInfo(name)
            if name == layer:
                info.type, info.linkname = tarfile.SYMTYPE, "layer.tar"
                made.addfile(info)
                continue
            info.size = len(data)
            made.addfile(info, io.BytesIO(data))
    with pytest.raises(DamagedError, match=re.escape(layer) + ".*it is a loop of links"):
        await import_image(library, source)


async def test_more_entries_than_any_archive_has(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ramet.images.sources.tar_index._MOST_ENTRIES", 100)
    contents = {hashlib.sha256(b"%d" % n).hexdigest(): b"" for n in range(101)}
    with pytest.raises(DamagedError, match="too many entries for an archive of images"):
        await import_image(library, archive(contents, tmp_path / "saved.tar"))


async def test_an_archive_that_grows_while_it_is_unpacked_is_bounded(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bomb is ended before the disk is full."""
    contents = docker_save({"app:1": LAYERS})
    contents["blobs/zeros"] = bytes(40_000_000)
    source = archive({"blobs/zeros": contents.pop("blobs/zeros"), **contents}, tmp_path / "saved.tar")
    source.write_bytes(gzip.compress(source.read_bytes(), 1))
    monkeypatch.setattr("ramet.images.sources.recognize.free_bytes", lambda where: 1000)
    with pytest.raises(FilesystemError, match="are free"):
        await import_image(library, source)
    assert list(library._places.root.glob(".making-*")) == []
