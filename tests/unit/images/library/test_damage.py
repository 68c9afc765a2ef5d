"""A file that is missing, cut, another's or changed is found and named; the next build mends it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ramet.images.erofs.blob import BLOCK_BYTES
from ramet.images.library.library import Library
from tests.unit.images.library.libraries import layer_of, material_of, seen

pytestmark = pytest.mark.anyio

LAYERS = [layer_of("base", 400_000), layer_of("own", 30_000)]


def removed(path: Path, other: Path) -> None:
    path.unlink()


def cut(path: Path, other: Path) -> None:
    path.chmod(0o644)
    os.truncate(path, path.stat().st_size - BLOCK_BYTES)


def another(path: Path, other: Path) -> None:
    content = bytearray(other.read_bytes()[: path.stat().st_size])
    path.chmod(0o644)
    path.write_bytes(content.ljust(path.stat().st_size, b"\0"))


def changed(path: Path, other: Path) -> None:
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)


def pipe(path: Path, other: Path) -> None:
    path.unlink()
    os.mkfifo(path)


HARMS: list[tuple[Callable[[Path, Path], None], str]] = [
    (removed, "is missing"),
    (cut, "bytes instead of"),
    (another, "has the content of another device"),
    (changed, "has another content than its digest says"),
    (pipe, "can't be read"),
]


@pytest.mark.parametrize("number", [0, 1], ids=["own", "blob"])
@pytest.mark.parametrize(("harm", "words"), HARMS, ids=[harm.__name__ for harm, _ in HARMS])
async def test_damage_is_found_named_and_mended_by_the_next_build(
    library: Library, number: int, harm: Callable[[Path, Path], None], words: str
) -> None:
    image = await library.add(material_of(LAYERS), name="app", is_local=True)
    files = seen(image)
    path, other = image.path_of(image.bases[number]), image.path_of(image.bases[1 - number])
    harm(path, other)
    (damage,) = library.damage(image, reads_all=True)
    assert str(path) in damage
    assert words in damage
    assert not library.is_whole(image)
    mended = await library.add(material_of(LAYERS), name="app", is_local=True)
    assert library.damage(mended, reads_all=True) == []
    assert seen(mended) == files


async def test_a_changed_blob_is_not_used_for_another_image(library: Library) -> None:
    image = await library.add(material_of(LAYERS[:1]), name="app", is_local=True)
    changed(image.path_of(image.bases[1]), Path())
    opened: list[int] = []
    other = await library.add(material_of(LAYERS, opened=opened), name="other", is_local=True)
    assert opened == [0, 1]
    assert library.damage(other, reads_all=True) == []
    assert library.damage(image, reads_all=True) == []


async def test_a_change_that_keeps_the_time_is_found_by_reading_everything(library: Library) -> None:
    image = await library.add(material_of(LAYERS), name="app", is_local=True)
    path = image.path_of(image.bases[0])
    before = path.stat().st_mtime_ns
    changed(path, Path())
    os.utime(path, ns=(before, before))
    assert library.is_whole(image)
    assert len(library.damage(image, reads_all=True)) == 1


async def test_a_file_that_was_only_touched_is_read_once_and_trusted(library: Library) -> None:
    image = await library.add(material_of(LAYERS), name="app", is_local=True)
    path = image.path_of(image.bases[0])
    before = path.stat().st_mtime_ns
    path.touch()
    assert library.is_whole(image)
    assert path.stat().st_mtime_ns == before
