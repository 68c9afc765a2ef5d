"""Pushes of images of the library, to Debian's docker-registry, and what is pulled from there again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ramet.errors import DamagedError, NotFoundError, RegistryError, UsageError
from ramet.images.library.library import Library
from ramet.images.library.obtain import obtain
from ramet.images.library.push import push_image
from tests.unit.images.library.libraries import layer_of, library_in, material_of
from tests.unit.images.library.test_squash import facts_of
from tests.unit.oci import docker_registry
from tests.unit.oci.registry_server import Registry, serving

pytestmark = pytest.mark.anyio
LAYERS = (layer_of("a", 300_000), layer_of("b", 20_000))


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with docker_registry.running(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(autouse=True)
def _no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "DOCKER_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


async def test_an_image_that_came_from_no_registry_is_pushed_as_one_layer(
    address: str, library: Library, tmp_path: Path
) -> None:
    image = await library.add(material_of(LAYERS), name="mine:1", is_local=True)
    pushed = await push_image(library, tmp_path / "cache", "mine:1", f"{address}/team/mine:1")
    assert pushed.squashed == "it came from no registry"
    assert pushed.sent_bytes == pushed.size_bytes
    there = library_in(tmp_path / "there")
    again = await obtain(there, tmp_path / "cache2", f"{address}/team/mine:1")
    assert again.digest == pushed.digest != image.digest
    assert facts_of(again) == facts_of(image)
    assert again.config == image.config
    second = await push_image(library, tmp_path / "cache3", "mine:1", f"{address}/team/mine:2")
    assert (second.digest, second.sent_bytes) == (pushed.digest, 0)


async def test_an_image_that_was_pulled_is_pushed_byte_for_byte(
    address: str, library: Library, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    with serving(Registry()) as registry:
        made = registry.add_image(*LAYERS)
        image = await obtain(library, cache, f"{registry.address}/team/x")
        pushed = await push_image(library, cache, f"{registry.address}/team/x", f"{address}/team/x:1")
        assert (pushed.squashed, pushed.digest) == (None, made["digest"])
        # Of a cache that was emptied, the layers are asked for once more where they came from.
        pushed = await push_image(library, tmp_path / "empty", image.digest, f"{address}/other/x:1")
        assert (pushed.squashed, pushed.digest) == (None, made["digest"])
        name = f"{registry.address}/team/x"
    pushed = await push_image(library, tmp_path / "empty2", name, f"{address}/team/gone:1")
    assert pushed.squashed is not None
    assert "its layers aren't kept here" in pushed.squashed
    again = await obtain(library_in(tmp_path / "there"), tmp_path / "cache2", f"{address}/team/gone:1")
    assert facts_of(again) == facts_of(image)


async def test_what_cannot_be_pushed_is_named(address: str, library: Library, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    image = await library.add(material_of(LAYERS), name="mine:1", is_local=True)
    with pytest.raises(NotFoundError, match="no image"):
        await push_image(library, cache, "no-such", f"{address}/team/x:1")
    with pytest.raises(UsageError, match="no reference"):
        await push_image(library, cache, "mine:1", f"{address}/UPPER")
    with pytest.raises(UsageError, match="digest"):
        await push_image(library, cache, "mine:1", f"{address}/team/x@{image.digest}")
    free = docker_registry.free_port()
    with pytest.raises(RegistryError, match="can't be reached"):
        await push_image(library, cache, "mine:1", f"127.0.0.1:{free}/team/x:1")
    own = image.path_of(image.bases[0])
    own.chmod(0o600)
    own.write_bytes(own.read_bytes()[:-4096])
    with pytest.raises(DamagedError, match="mine:1 is damaged"):
        await push_image(library, cache, "mine:1", f"{address}/team/x:1")
