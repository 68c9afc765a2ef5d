"""Images are built once, of shared parts, the same everywhere; what they need of the disk is bounded."""

from __future__ import annotations

import stat
import tarfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import anyio
import anyio.from_thread
import pytest

from ramet import progress
from ramet.errors import DamagedError
from ramet.images.erofs import blob
from ramet.images.erofs.blob import BLOCK_BYTES, mark
from ramet.images.layers.limits import DEFAULT_LIMITS
from ramet.images.library.library import Library
from ramet.images.library.obtain import read_file
from ramet.images.library.records import ContainerImage
from ramet.memory.integrity import digest
from ramet.system.files import write_all
from tests.unit.images.layer_tars import member, tar
from tests.unit.images.library.libraries import bytes_in, layer_of, library_in, material_of, seen
from tests.unit.oci.registry_server import digest_of

pytestmark = pytest.mark.anyio

BASE = layer_of("base", 400_000)
OTHER = layer_of("other", 300_000)
OWN = layer_of("own", 40_000)


async def add(library: Library, *layers: bytes, name: str | None = None) -> ContainerImage:
    return await library.add(material_of(layers), name=name, is_local=True)


async def test_an_image_has_its_own_file_and_a_blob_per_large_layer(library: Library) -> None:
    image = await add(library, BASE, OWN, OTHER, name="app")
    assert [base.name for base in image.bases] == ["base0", "base1", "base2"]
    assert [layer.base for layer in image.record.layers] == [1, None, 2]
    assert library.is_whole(image)
    files = seen(image)
    assert set(files) >= {b"base/large0", b"own/large3", b"other/small2"}
    for base in image.bases:
        path = image.path_of(base)
        content = path.read_bytes()
        assert content[-BLOCK_BYTES:] == mark(base.blocks, base.digest)
        assert digest_of(content[:-BLOCK_BYTES]) == f"sha256:{base.digest}"
        assert path.name == f"{base.digest}.erofs"
        assert stat.S_IMODE(path.stat().st_mode) == 0o444
        assert base.part_digest == digest(path)


async def test_the_same_layers_give_the_same_files_anywhere(library: Library, tmp_path: Path) -> None:
    image = await add(library, BASE, OWN)
    other = await add(library_in(tmp_path / "elsewhere"), BASE, OWN)
    assert image.bases == other.bases
    assert image.digest == other.digest


async def test_a_layer_that_was_kept_is_not_opened_and_gives_the_same_image(
    library: Library, tmp_path: Path
) -> None:
    await add(library, BASE)
    opened: list[int] = []
    image = await library.add(material_of([BASE, OWN], opened=opened), name=None, is_local=True)
    assert opened == [1]
    whole = await add(library_in(tmp_path / "elsewhere"), BASE, OWN)
    assert image.bases == whole.bases
    assert seen(image) == seen(whole)


async def test_an_archive_that_was_not_seen_is_read_before_its_layer_is_believed(library: Library) -> None:
    await add(library, BASE)
    opened: list[int] = []
    material = material_of([BASE, OWN], opened=opened)
    stranger = material._replace(layers=[layer._replace(blob=None) for layer in material.layers])
    image = await library.add(stranger, name=None, is_local=True)
    assert opened == [0, 1]
    assert library.is_whole(image)
    claims = [layer._replace(diff_id=material.layers[0].diff_id, blob=None) for layer in material.layers]
    with pytest.raises(DamagedError, match="layer 1 is damaged: its content has the digest"):
        await library.add(material._replace(layers=claims), name=None, is_local=True)


@pytest.mark.parametrize("suffix", ["entries", "small", "json"])
@pytest.mark.parametrize("harm", ["missing", "changed"])
async def test_kept_parts_that_are_damaged_are_made_again(library: Library, suffix: str, harm: str) -> None:
    await add(library, BASE)
    (path,) = library._places.layers.glob(f"*.{suffix}")
    content = path.read_bytes()
    path.unlink()
    if harm == "changed":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    opened: list[int] = []
    image = await library.add(material_of([BASE, OWN], opened=opened), name=None, is_local=True)
    assert opened == [0, 1]
    assert library.damage(image, reads_all=True) == []
    opened.clear()
    await library.add(material_of([BASE, OTHER], opened=opened), name=None, is_local=True)
    assert opened == [1]


async def test_images_share_the_blobs_of_their_layers(library: Library) -> None:
    """100 images with a common base take at most 1.3 times their distinct layers: sizes are scaled down."""
    base = layer_of("common", 4_000_000)
    own = [layer_of(f"own{number}", 80_000) for number in range(100)]
    images = [await add(library, base, layer, name=f"app{n}") for n, layer in enumerate(own)]
    assert len({image.digest for image in images}) == 100
    assert len({image.bases[1].digest for image in images}) == 1
    assert len({image.path_of(image.bases[1]).stat().st_ino for image in images}) == 1
    distinct = len(base) + sum(map(len, own))
    assert bytes_in(library._places.root) <= 1.3 * distinct
    assert seen(images[7]).keys() >= {b"common/large0", b"own7/large0"}


@pytest.mark.parametrize("own", [1, 6], ids=["shared", "own"])
async def test_temporary_space_is_bounded(
    library: Library, monkeypatch: pytest.MonkeyPatch, own: int
) -> None:
    """The library, with what the build needs meanwhile, is at most 1.2 times the image."""
    monkeypatch.setattr(blob, "SHARED_FROM_BYTES", 600_000)
    layers = [layer_of("large", 3_000_000)] if own == 1 else []
    layers += [layer_of(f"own{number}", 400_000, files=8) for number in range(own)]
    most = 0

    def measured(descriptor: int, data: bytes, offset: int) -> None:
        nonlocal most
        write_all(descriptor, data, offset)
        most = max(most, bytes_in(library._places.root))

    for module in ("erofs.image", "library.build", "library.entries", "layers.contents", "erofs.blob"):
        monkeypatch.setattr(f"ramet.images.{module}.write_all", measured)
    for module in ("erofs.image", "layers.contents"):
        monkeypatch.setattr(f"ramet.images.{module}._BUFFER_BYTES", 16_384)
    await add(library, *layers, name="app")
    assert len(library.get("app").bases) == (2 if own == 1 else 1)
    assert most <= 1.2 * bytes_in(library._places.root)


async def test_more_large_layers_than_devices_are_no_obstacle(library: Library) -> None:
    layers = [layer_of(f"l{number}", 100_000 + 10_000 * number) for number in range(7)]
    for layer in layers:
        await add(library, layer)
    opened: list[int] = []
    image = await library.add(material_of(layers, opened=opened), name="app", is_local=True)
    assert opened == []  # the two smallest are copied from their blobs
    assert [layer.base for layer in image.record.layers] == [None, None, 1, 2, 3, 4, 5]
    assert len([path for path in seen(image) if b"large" in path]) == 28


async def test_overridden_and_removed_files_are_as_the_layers_say(library: Library) -> None:
    upper = tar([member("base/large0", data=b"new"), member("base/.wh.large1"), member("base/small1")])
    files = seen(await add(library, BASE, upper))
    assert files[b"base/large0"].data == b"new"  # type: ignore[attr-defined]
    assert b"base/large1" not in files
    assert files[b"base/small1"].data == b""  # type: ignore[attr-defined]


async def test_an_image_with_too_many_entries_is_refused(tmp_path: Path) -> None:
    library = Library(
        tmp_path / "images", part_digest=digest, limits=replace(DEFAULT_LIMITS, total_entries=1000)
    )
    layer = tar([member(f"f{number}") for number in range(1001)])
    with pytest.raises(DamagedError, match="the image has too many entries"):
        await add(library, layer)
    assert list(library._places.root.glob(".making-*")) == []
    assert library.images() == []


async def test_the_limit_holds_for_kept_layers_too(tmp_path: Path) -> None:
    limits = replace(DEFAULT_LIMITS, total_entries=12)
    library = Library(tmp_path / "images", part_digest=digest, limits=limits)
    await add(library, BASE)
    with pytest.raises(DamagedError, match="too many entries"):
        await add(library, BASE, BASE)


async def test_links_that_fill_the_memory_are_refused(tmp_path: Path) -> None:
    """Eight megabytes of gzip can hold two million links of four kilobytes each."""
    limits = replace(DEFAULT_LIMITS, metadata_bytes=200_000)
    library = Library(tmp_path / "images", part_digest=digest, limits=limits)
    layer = tar([member(f"l{number}", tarfile.SYMTYPE, link="x" * 4000) for number in range(60)])
    with pytest.raises(DamagedError, match="names, links and attributes are too large together"):
        await add(library, layer)
    xattrs = {b"user.x": b"x" * 4000}
    layer = tar([member(f"f{number}", xattrs=xattrs) for number in range(60)])
    with pytest.raises(DamagedError, match="names, links and attributes are too large together"):
        await add(library, layer)
    await add(library, tar([member(f"l{number}", tarfile.SYMTYPE, link="x" * 4000) for number in range(40)]))


@pytest.mark.timing
async def test_a_build_that_is_cancelled_leaves_nothing(library: Library) -> None:
    begun = anyio.Event()

    def endless() -> Iterator[bytes]:
        yield BASE[:1024]
        anyio.from_thread.run_sync(begun.set)
        while True:
            time.sleep(0.001)
            yield b""

    material = material_of([BASE])
    layers = [layer._replace(open=endless, diff_id=None) for layer in material.layers]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: library.add(material._replace(layers=layers), name="app", is_local=True))
        await begun.wait()
        tasks.cancel_scope.cancel()
    assert list(library._places.root.glob(".making-*")) == []
    assert library.images() == []
    await add(library, BASE, name="app")


async def test_progress_is_reported(library: Library) -> None:
    reports: list[progress.Progress] = []
    with progress.received_by(reports.append):
        await add(library, BASE, OWN, name="app")
    stages = list(dict.fromkeys(report.stage for report in reports))
    assert stages[:3] == ["unpacking layer 1 of 2", "unpacking layer 2 of 2", "writing the image"]
    last = [report for report in reports if report.stage == stages[0]][-1]
    assert last.done == last.total == len(BASE)


async def test_the_same_build_again_changes_no_file(library: Library) -> None:
    image = await add(library, BASE, OWN, name="app")
    before = {path: path.stat().st_ino for path in library._places.blobs.iterdir()}
    opened: list[int] = []
    material = material_of([BASE, OWN], digest=image.digest, opened=opened)
    again = await library.add(material, name="again", is_local=True)
    assert opened == []
    assert again.record == image.record
    assert {path: path.stat().st_ino for path in library._places.blobs.iterdir()} == before


async def test_a_damaged_layer_leaves_nothing(library: Library) -> None:
    cut = material_of([BASE, OWN[:-20_000]])
    with pytest.raises(DamagedError, match=r"^layer 1 is damaged: it is cut short"):
        await library.add(cut, name="app", is_local=True)
    assert library.images() == []
    assert list(library._places.root.glob(".making-*")) == []
    assert list(library._places.blobs.iterdir()) == []


async def test_a_build_that_fails_closes_its_layers(library: Library, tmp_path: Path) -> None:
    (tmp_path / "wrong").write_bytes(b"no archive" * 10_000)
    material = material_of([BASE])
    layers = [layer._replace(open=lambda: read_file(tmp_path / "wrong")) for layer in material.layers]
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(DamagedError) as caught:
        await library.add(material._replace(layers=layers), name="app", is_local=True)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    del caught


async def test_sparse_files_stay_sparse(library: Library, tmp_path: Path) -> None:
    source = tmp_path / "sparse"
    with source.open("wb") as file:
        file.truncate(40_000_000)
        file.seek(20_000_000)
        file.write(b"x" * 100_000)
    archive = tmp_path / "sparse.tar"
    await anyio.run_process(["tar", "--sparse", "-C", str(tmp_path), "-cf", str(archive), "sparse"])
    image = await add(library, archive.read_bytes(), name="app")
    assert len(image.bases) == 2
    assert bytes_in(library._places.root) < 2_000_000
    with tarfile.open(archive) as opened:
        assert opened.getmember("sparse").size == 40_000_000
    assert seen(image)[b"sparse"].data == source.read_bytes()  # type: ignore[attr-defined]
