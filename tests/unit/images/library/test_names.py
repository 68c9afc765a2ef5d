"""Names and digests lead to images; removal and pruning free what nothing leads to, and break nothing."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

import anyio
import pytest

from ramet.errors import LockBusyError, NotFoundError, UsageError
from ramet.images.library import library as module
from ramet.images.library.library import Library
from ramet.images.library.records import ContainerImage
from tests.unit.images.library.libraries import bytes_in, layer_of, material_of, seen

pytestmark = pytest.mark.anyio

BASE = layer_of("base", 400_000)
OWN = [layer_of(f"own{number}", 90_000) for number in range(3)]


async def add(library: Library, *layers: bytes, name: str | None = None) -> ContainerImage:
    return await library.add(material_of(layers), name=name, is_local=True)


async def test_a_name_is_read_as_docker_reads_it(library: Library) -> None:
    image = await add(library, BASE, name="app")
    for text in ("app", "app:latest", "docker.io/library/app", image.digest, image.digest[7:19]):
        assert library.get(text).digest == image.digest
    assert library.get(f"app@{image.digest}").digest == image.digest
    assert library.is_local("app:latest")
    assert not library.is_local("app:1")


async def test_an_unknown_name_is_an_error_with_a_near_one(library: Library) -> None:
    await add(library, BASE, name="python:3.13")
    with pytest.raises(NotFoundError) as caught:
        library.get("pythn:3.13")
    assert caught.value.hint == "did you mean python:3.13?"
    with pytest.raises(NotFoundError) as caught:
        library.get("zzz")
    assert "image ls" in str(caught.value.hint)


async def test_a_beginning_that_several_digests_have_is_refused(library: Library) -> None:
    for number, digits in enumerate(("abcd1" + "0" * 59, "abcd2" + "0" * 59)):
        material = material_of([OWN[number]], digest=f"sha256:{digits}")
        await library.add(material, name=None, is_local=True)
    with pytest.raises(UsageError, match="2 images have digests that begin with abcd") as caught:
        library.find("abcd")
    assert caught.value.hint == "give more digits: abcd100000000000, abcd200000000000"
    assert library.get("abcd1").digest.startswith("sha256:abcd1")


async def test_a_name_comes_before_a_digest_that_begins_so(library: Library) -> None:
    material = material_of([OWN[0]], digest="sha256:cafe" + "0" * 60)
    await library.add(material, name=None, is_local=True)
    named = await add(library, OWN[1], name="cafe")
    assert library.get("cafe").digest == named.digest


async def test_a_sha512_digest_is_a_digest(library: Library) -> None:
    digest = "sha512:" + "5" * 128
    await library.add(material_of([BASE], digest=digest), name="app", is_local=True)
    assert library.get("app").digest == digest
    assert [image.digest for _, image in library.images()] == [digest]
    await library.remove("app")
    assert library.images() == []


@pytest.mark.parametrize("name", ["", " app", "-app", "a\nb", "x" * 513])
async def test_a_text_that_can_be_no_name_is_refused(library: Library, name: str) -> None:
    with pytest.raises(UsageError, match="can't be the name of an image"):
        await add(library, BASE, name=name)
    assert library.images() == []


async def test_a_name_moves_to_the_new_image(library: Library) -> None:
    old = await add(library, BASE, OWN[0], name="app")
    new = await add(library, BASE, OWN[1], name="app")
    assert library.get("app").digest == new.digest
    assert [names for names, image in library.images() if image.digest == old.digest] == [[]]


async def test_an_image_goes_with_its_last_name(library: Library) -> None:
    image = await add(library, BASE, name="app")
    assert await library.give("other:1", image, is_local=True) is not None
    await library.remove("app")
    assert library.get("other:1").digest == image.digest
    await library.remove("other:1")
    assert library.images() == []
    with pytest.raises(NotFoundError):
        await library.remove("app")


async def test_a_digest_with_several_names_is_removed_only_by_force(library: Library) -> None:
    image = await add(library, BASE, name="app")
    await library.give("other:1", image, is_local=True)
    with pytest.raises(UsageError, match=r"has 2 names: app:latest, other:1") as caught:
        await library.remove(image.digest)
    assert "--force" in str(caught.value.hint)
    assert len(library.images()[0][0]) == 2
    await library.remove(image.digest[7:20], force=True)
    assert library.images() == []
    assert list(library._places.names.iterdir()) == []


async def test_a_name_is_not_given_to_an_image_that_is_gone(library: Library) -> None:
    image = await add(library, BASE, name="app")
    await library.remove("app")
    assert await library.give("other", image, is_local=True) is None
    assert library.find("other") is None


async def test_a_prune_removes_what_no_name_leads_to(library: Library) -> None:
    kept = await add(library, BASE, OWN[0], name="kept")
    await add(library, BASE, OWN[1], name="gone")
    await add(library, OWN[2])
    before = bytes_in(library._places.root)
    await library.remove("gone")
    pruned = await library.prune()
    assert (pruned.images, before - bytes_in(library._places.root) >= pruned.bytes > 180_000) == (1, True)
    assert library.damage(kept, reads_all=True) == []
    wanted = {f"{base.digest}.erofs" for base in kept.bases}
    assert {path.name for path in library._places.blobs.iterdir()} == wanted
    assert len(list(library._places.layers.iterdir())) == 3 * 2
    assert list(library._places.locks.iterdir()) == []
    again = await library.prune()
    assert (again.images, again.files, again.bytes) == (0, 0, 0)


async def test_instances_keep_their_files(library: Library, tmp_path: Path) -> None:
    image = await add(library, BASE, name="app")
    for base in image.bases:
        os.link(image.path_of(base), tmp_path / base.file)
    files = seen(image)
    await library.remove("app")
    pruned = await library.prune()
    assert list(library._places.blobs.iterdir()) == []
    assert pruned.bytes < 50_000  # nothing of the image's: the instance has it
    for base in image.bases:
        (library._places.blobs / f"{base.digest}.erofs").symlink_to(tmp_path / base.file)
    assert seen(image) == files


async def test_a_prune_waits_for_builds(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PRUNE_WAIT_S", 0.05)
    await add(library, BASE, name="app")
    async with library.using():
        with pytest.raises(LockBusyError, match="images are being pulled or built"):
            await library.prune()
    await library.prune()


async def test_a_build_waits_for_a_prune(library: Library) -> None:
    await add(library, BASE, name="app")
    descriptor = os.open(library._places.blobs, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    done: list[str] = []

    async def build() -> None:
        done.append((await add(library, BASE, OWN[0], name="other")).name)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(build)
        await anyio.wait_all_tasks_blocked()
        assert done == []
        os.close(descriptor)
    assert done == ["other:latest"]


async def test_a_prune_keeps_the_files_of_another_version(library: Library) -> None:
    image = await add(library, BASE, name="app")
    manifest = library._places.manifest(image.digest)
    record = json.loads(manifest.read_bytes())
    manifest.unlink()
    manifest.write_text(json.dumps({**record, "format": 99}))
    assert library.find("app") is None
    await library.prune()
    assert all(image.path_of(base).exists() for base in image.bases)
    assert library.is_local("app")


async def test_a_record_that_says_nothing_goes(library: Library) -> None:
    image = await add(library, BASE, name="app")
    manifest = library._places.manifest(image.digest)
    manifest.unlink()
    manifest.write_text("{")
    (library._places.names / "0.json").write_text("{")
    assert library.images() == []
    assert [entry.name for entry in library._shelf.names()] == ["app:latest"]
    assert (await library.prune()).files >= 2
    assert list(library._places.manifests.iterdir()) == []


async def test_an_empty_home_can_be_pruned(library: Library) -> None:
    assert await library.prune() == (0, 0, 0)
    assert library.images() == []
    assert library.find("app") is None
