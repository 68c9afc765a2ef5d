"""Images by name: from the library without the network where that can be, else from their registry."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from ramet.errors import DamagedError, NotFoundError, RametError, RegistryError, UnavailableError, UsageError
from ramet.images.library.library import Library
from ramet.images.library.obtain import Pull, fetch, obtain, prune
from ramet.images.library.records import ContainerImage
from ramet.oci import downloads
from tests.unit.images.library.libraries import layer_of, library_in, material_of, seen
from tests.unit.images.library.test_damage import changed
from tests.unit.oci.registry_server import OCI, Registry, digest_of, serving

pytestmark = pytest.mark.anyio

PULLS: tuple[Pull, ...] = ("missing", "never", "always")
BASE, OWN, OTHER = layer_of("base", 400_000), layer_of("own", 30_000), layer_of("other", 200_000)


@pytest.fixture
def registry() -> Iterator[Registry]:
    with serving(Registry()) as running:
        yield running


@pytest.fixture(autouse=True)
def _no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "DOCKER_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


class User:
    """Someone with a home and a cache of downloads, who asks a registry for `team/x`."""

    def __init__(self, library: Library, cache: Path, registry: Registry) -> None:
        self.library, self.cache, self.registry = library, cache, registry

    async def get(
        self, what: str = "", *, pull: Pull = "missing", platform: str | None = None
    ) -> ContainerImage:
        text = f"{self.registry.address}/team/x{what}"
        return await obtain(self.library, self.cache, text, pull=pull, platform=platform)

    def asked(self, part: str = "") -> int:
        count = len(self.registry.asked(part))
        self.registry.requests.clear()
        return count


@pytest.fixture
def user(library: Library, tmp_path: Path, registry: Registry) -> User:
    return User(library, tmp_path / "cache", registry)


def index_of(registry: Registry, **images: bytes) -> dict[str, Any]:
    """An index with an image of one layer per architecture, tagged `latest`."""
    entries = []
    for architecture, layer in images.items():
        entry = registry.add_image(layer, tag=None, architecture=architecture)
        entries.append({**entry, "platform": {"os": "linux", "architecture": architecture}})
    media_type = f"{OCI}.index.v1+json"
    return registry.add_manifest(
        {"schemaVersion": 2, "mediaType": media_type, "manifests": entries}, "latest"
    )


async def test_an_image_is_pulled_once_and_found_without_the_network(user: User) -> None:
    manifest = user.registry.add_image(BASE, OWN)
    image = await user.get()
    assert image.digest == manifest["digest"]
    assert image.name == f"{user.registry.address}/team/x:latest"
    assert image.config.cmd == ("true",)
    assert set(seen(image)) >= {b"base/large0", b"own/small1"}
    assert user.asked() > 0
    for pull in PULLS[:2]:
        again = await user.get(pull=pull)
        assert again.record == image.record
    assert user.asked() == 0


async def test_never_asks_nobody(user: User) -> None:
    user.registry.add_image(BASE)
    with pytest.raises(NotFoundError, match=r"--pull never") as caught:
        await user.get(pull="never")
    assert "ramet pull" in str(caught.value.hint)
    assert user.asked() == 0


async def test_a_tag_that_moved_is_followed_only_when_asked(user: User) -> None:
    user.registry.add_image(BASE, OWN)
    old = await user.get()
    user.registry.add_image(BASE, OTHER)
    assert (await user.get()).digest == old.digest
    user.asked()
    new = await user.get(pull="always")
    assert new.digest != old.digest
    assert (await user.get()).digest == new.digest
    assert [len(names) for names, image in user.library.images() if image.digest == old.digest] == [0]


async def test_always_fetches_no_layer_of_an_image_that_is_known(user: User) -> None:
    user.registry.add_image(BASE, OWN)
    image = await user.get()
    await downloads.clear(user.cache)
    user.asked()
    again = await user.get(pull="always")
    assert again.record == image.record
    assert len(user.registry.asked("/blobs/")) == 1  # its configuration


async def test_a_layer_that_another_image_has_is_not_fetched(user: User) -> None:
    user.registry.add_image(BASE, OWN)
    first = await user.get()
    await downloads.clear(user.cache)
    user.asked()
    user.registry.add_image(BASE, OTHER, tag="other")
    second = await user.get(":other")
    assert second.bases[1].digest == first.bases[1].digest
    assert len(user.registry.asked("/blobs/")) == 2  # configuration and OTHER
    assert set(seen(second)) >= {b"base/large0", b"other/large3"}


async def test_a_layer_that_was_lost_meanwhile_is_fetched_after_all(
    user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    user.registry.add_image(BASE, OWN)
    await user.get()
    await downloads.clear(user.cache)
    for path in user.library._places.layers.glob("*.small"):
        path.chmod(0o644)
        path.write_bytes(b"damaged")
    user.registry.add_image(BASE, OTHER, tag="other")
    image = await user.get(":other")
    assert user.library.damage(image, reads_all=True) == []
    assert set(seen(image)) >= {b"base/small0", b"other/large3"}


@pytest.mark.parametrize("pull", ["missing", "never", "always"])
async def test_a_digest_that_is_there_asks_nobody(user: User, pull: Pull) -> None:
    index = index_of(user.registry, amd64=BASE, arm64=OWN)
    image = await user.get()
    user.asked()
    for digest in (image.digest, index["digest"]):
        assert (await user.get(f"@{digest}", pull=pull)).digest == image.digest
    assert (await obtain(user.library, user.cache, image.digest, pull=pull)).digest == image.digest
    assert user.asked() == 0


async def test_an_image_by_its_digest_is_pulled(user: User) -> None:
    manifest = user.registry.add_image(BASE, tag=None)
    image = await user.get(f"@{manifest['digest']}")
    assert image.digest == manifest["digest"]
    assert (await user.get(f"@{manifest['digest']}", pull="never")).digest == image.digest
    with pytest.raises(NotFoundError):
        await user.get(pull="never")  # its tag wasn't asked for


async def test_platforms_of_one_name_are_apart(user: User) -> None:
    index_of(user.registry, amd64=BASE, arm64=OWN)
    native, foreign = await user.get(), await user.get(platform="linux/arm64/v8")
    assert native.digest != foreign.digest
    assert (await user.get(pull="never")).digest == native.digest
    assert (await user.get(pull="never", platform="linux/arm64")).digest == foreign.digest
    with pytest.raises(UnavailableError, match="is for linux/arm64, not for linux/amd64"):
        await obtain(user.library, user.cache, foreign.digest)
    with pytest.raises(NotFoundError):
        await user.get(pull="never", platform="linux/riscv64")
    await user.library.remove(f"{user.registry.address}/team/x")
    assert user.library.images() == []


async def test_a_local_name_never_goes_to_the_network(user: User, registry: Registry) -> None:
    name = f"{registry.address}/team/x"
    registry.add_image(BASE)
    local = await user.library.add(material_of([OWN]), name=name, is_local=True)
    for pull in PULLS:
        assert (await user.get(pull=pull)).digest == local.digest
        assert (await user.get(":latest", pull=pull)).digest == local.digest
    with pytest.raises(UsageError, match="is an image that was imported"):
        await fetch(user.library, user.cache, name)
    local.path_of(local.bases[0]).unlink()
    with pytest.raises(DamagedError, match="is missing"):
        await user.get()
    user.library._places.manifest(local.digest).unlink()
    with pytest.raises(DamagedError, match="import it again"):
        await user.get()
    assert user.asked() == 0


async def test_a_local_image_of_another_platform_is_refused(user: User) -> None:
    material = material_of([OWN])._replace(platform="linux/arm64")
    await user.library.add(material, name="app", is_local=True)
    with pytest.raises(UnavailableError, match="the image app:latest is for linux/arm64"):
        await obtain(user.library, user.cache, "app")


async def test_damage_is_mended_by_the_next_use(user: User) -> None:
    user.registry.add_image(BASE, OWN)
    image = await user.get()
    for base in image.bases:
        changed(image.path_of(base), Path())
        assert (await user.get()).record.bases == image.bases
        assert user.library.damage(image, reads_all=True) == []
    image.path_of(image.bases[1]).unlink()
    with pytest.raises(DamagedError, match=r"is damaged: its file .* is missing") as caught:
        await user.get(pull="never")
    assert "pull or import it again" in str(caught.value.hint)
    assert (await user.get()).record.bases == image.bases


async def test_damage_is_said_when_the_registry_is_of_no_help(user: User) -> None:
    user.registry.add_image(BASE, OWN)
    image = await user.get()
    user.registry.manifests.clear()
    with pytest.raises(NotFoundError) as caught:
        await user.get(pull="always")
    assert "--pull missing" in str(caught.value.hint)
    image.path_of(image.bases[1]).unlink()
    with pytest.raises(DamagedError, match=r"is damaged: .* is missing; and it can't be pulled again: "):
        await user.get()


async def test_two_at_once_fetch_and_build_once(user: User, registry: Registry) -> None:
    registry.add_image(BASE, OWN)
    found: list[ContainerImage] = []

    async def get(library: Library) -> None:
        found.append(await User(library, user.cache, registry).get())

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(get, Library(user.library._places.root, part_digest=lambda _: "x"))
    assert len(found) == 4
    assert all(image.record == found[0].record for image in found)
    blobs = [path for path, _ in registry.requests if "/blobs/" in path]
    assert len(blobs) == len(set(blobs)) == 3


async def test_an_image_that_no_registry_has_is_an_error_with_a_near_name(user: User) -> None:
    user.registry.add_image(BASE)
    await user.get()
    with pytest.raises(NotFoundError) as caught:
        await user.get(":latestt")
    assert caught.value.hint == f"did you mean {user.registry.address}/team/x:latest?"


async def test_a_registry_that_fails_leaves_the_library_as_it_was(user: User) -> None:
    user.registry.add_image(BASE, OWN)
    image = await user.get()
    user.registry.html = True
    with pytest.raises(RametError) as caught:
        await user.get(pull="always")
    assert isinstance(caught.value, RegistryError | DamagedError)
    user.registry.html = False
    assert (await user.get(pull="never")).record == image.record


async def test_a_text_that_is_no_reference_is_refused(user: User) -> None:
    with pytest.raises(UsageError):
        await obtain(user.library, user.cache, "no reference!")
    with pytest.raises(UsageError, match="is no platform"):
        await user.get(platform="amd64")


async def test_downloads_are_kept_up_to_a_bound_and_pruned(
    user: User, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        registry.add_image(layer_of(f"l{number}", 100_000), tag=str(number))
    monkeypatch.setattr(downloads, "KEPT_BYTES", 260_000)
    for number in range(3):
        await user.get(f":{number}")
    large = sorted(path.stat().st_size for path in (user.cache / "blobs").rglob("*") if path.is_file())
    assert [size > 90_000 for size in large].count(True) == 2
    images, _, freed = await prune(user.library, user.cache)
    assert images == 0
    assert freed > 200_000
    assert list((user.cache / "blobs" / "sha256").iterdir()) == []
    for number in range(3):
        assert user.library.is_whole(await user.get(f":{number}", pull="never"))


async def test_downloads_of_a_pull_that_is_under_way_stay(tmp_path: Path) -> None:
    blob = tmp_path / "blobs" / "sha256" / "0"
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"x" * 10_000)
    async with downloads.using(tmp_path), downloads.using(tmp_path):
        assert await downloads.trim(tmp_path, most_bytes=1) == (0, 0)
        assert blob.exists()
    assert await downloads.trim(tmp_path, most_bytes=1) == (1, 12288)


async def test_two_homes_share_the_downloads(user: User, tmp_path: Path) -> None:
    user.registry.add_image(BASE, OWN)
    await user.get()
    user.asked()
    await User(library_in(tmp_path / "other"), user.cache, user.registry).get()
    assert len(user.registry.asked("/blobs/")) == 0


async def test_a_wrong_archive_of_the_right_size_in_the_cache_is_fetched_anew(user: User) -> None:
    made = user.registry.add_image(BASE, OWN)
    archive = user.cache / "blobs" / "sha256" / digest_of(BASE).removeprefix("sha256:")
    archive.parent.mkdir(parents=True)
    archive.write_bytes(bytes(len(BASE)))
    image = await user.get()
    assert image.digest == made["digest"]
    assert archive.read_bytes() == BASE


async def test_a_layer_that_isnt_what_the_configuration_says_is_one_error(user: User) -> None:
    user.registry.add_image(BASE)
    (media_type, content) = user.registry.manifests.pop("latest")
    manifest = json.loads(content)
    other = user.registry.add_blob(OWN)
    manifest["layers"][0] |= other
    user.registry.manifests["latest"] = (media_type, json.dumps(manifest).encode())
    with pytest.raises(DamagedError, match=r"layer .* is damaged: its content has the digest"):
        await user.get()
    assert user.library.images() == []
