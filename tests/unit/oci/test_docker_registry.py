"""Pushes to and pulls from Debian's `docker-registry`, the reference implementation, where there is one."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme

from ramet.errors import DamagedError, NotFoundError, RametError, RegistryError, RegistryLoginError
from ramet.oci.answers import Limits
from ramet.oci.blobs import BlobCache, Patience
from ramet.oci.client import RegistryClient
from ramet.oci.digests import Digest
from ramet.oci.documents import Descriptor, Platform
from ramet.oci.pull import PulledImage, pull
from ramet.oci.push import ImageContent, PushedImage, cached_image, push
from ramet.oci.reference import Reference
from ramet.oci.settings import Settings, endpoints
from ramet.oci.transport import Transport
from ramet.oci.upload import Uploader
from tests.unit.oci import docker_registry
from tests.unit.oci.docker_registry import PASSWORD, USER, CuttingProxy, TokenServer

pytestmark = pytest.mark.anyio
AMD64 = Platform("linux", "amd64")
LAYERS = [random.Random(seed).randbytes(2_000_000 + seed) for seed in range(3)]
SIZE = sum(map(len, LAYERS))
QUICK = Limits(connect_s=5, silence_s=5, busy_tries=2, busy_first_s=0.01)
HASTE = Patience(first_s=0.01, longest_s=0.02)
KIND = "application/vnd.oci.image"


@dataclass
class Registry:
    """A registry, what its clients need, and where its content is."""

    address: str
    settings: Settings
    content: Path
    tokens: TokenServer | None = None


def made_image(
    cache: BlobCache, *layers: bytes, architecture: str = "amd64", comment: str = ""
) -> ImageContent:
    """Put an image into the cache, as an import does."""

    def blob(kind: str, content: bytes) -> Descriptor:
        digest = Digest.of(content)
        path = cache.path(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return Descriptor(f"{KIND}.{kind}", len(content), str(digest))

    digests = [str(Digest.of(layer)) for layer in layers]
    config = {"architecture": architecture, "os": "linux", "author": comment}
    config["rootfs"] = {"type": "layers", "diff_ids": digests}  # type: ignore[assignment]
    blobs = [blob("layer.v1.tar", layer) for layer in layers]
    described = blob("config.v1+json", json.dumps(config).encode())
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{KIND}.manifest.v1+json",
        "config": {"mediaType": described.media_type, "size": described.size, "digest": described.digest},
        "layers": [{"mediaType": b.media_type, "size": b.size, "digest": b.digest} for b in blobs],
    }
    content = json.dumps(manifest).encode()
    blob("manifest.v1+json", content)
    files = tuple((b, cache.path(b.checked_digest)) for b in (*blobs, described))
    return ImageContent(content, f"{KIND}.manifest.v1+json", files)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def anonymous(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    directory = tmp_path_factory.mktemp("anonymous")
    with docker_registry.running(directory) as address:
        yield Registry(address, Settings(), directory / "content")


def _secured(directory: Path, authority: trustme.CA) -> tuple[dict[str, str], Settings]:
    authority.cert_pem.write_to_path(str(directory / "ca.pem"))
    tls = docker_registry.write_certificates(authority, directory)
    return tls, Settings(authority=directory / "ca.pem")


@pytest.fixture(scope="module")
def basic(tmp_path_factory: pytest.TempPathFactory, authority: trustme.CA) -> Iterator[Registry]:
    directory = tmp_path_factory.mktemp("basic")
    tls, settings = _secured(directory, authority)
    with docker_registry.running(directory, auth=docker_registry.passwords(directory), tls=tls) as address:
        yield Registry(address, settings, directory / "content")


@pytest.fixture(scope="module")
def bearer(tmp_path_factory: pytest.TempPathFactory, authority: trustme.CA) -> Iterator[Registry]:
    docker_registry.program()
    directory = tmp_path_factory.mktemp("bearer")
    tls, settings = _secured(directory, authority)
    tokens = TokenServer(directory)
    with (
        tokens.serving(tls),
        docker_registry.running(directory, auth=tokens.auth(), tls=tls) as address,
    ):
        yield Registry(address, settings, directory / "content", tokens)


@pytest.fixture(params=["anonymous", "basic", "bearer"])
def registry(request: pytest.FixtureRequest) -> Registry:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Registry)
    return found


@pytest.fixture(autouse=True)
def _no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "DOCKER_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def log_in(registry: Registry, *, password: str = PASSWORD) -> None:
    directory = Path(os.environ["HOME"], ".docker")
    directory.mkdir(exist_ok=True)
    entry = {"username": USER, "password": password}
    (directory / "config.json").write_text(json.dumps({"auths": {registry.address: entry}}))


def named(registry: Registry, name: str, address: str | None = None) -> Reference:
    return Reference.parse(f"{address or registry.address}/{name}")


async def pushed(registry: Registry, reference: Reference, content: ImageContent, **more: Any) -> PushedImage:
    return await push(reference, content, settings=registry.settings, limits=QUICK, patience=HASTE, **more)


async def pulled(registry: Registry, reference: Reference, cache: BlobCache) -> PulledImage:
    return await pull(reference, cache, settings=registry.settings, platform=AMD64, limits=QUICK)


def cache_in(tmp_path: Path, name: str) -> BlobCache:
    return BlobCache(tmp_path / name, patience=HASTE)


async def test_what_is_pushed_is_pulled_byte_for_byte_with_each_way_of_authorization(
    registry: Registry, tmp_path: Path
) -> None:
    log_in(registry)
    here, there = cache_in(tmp_path, "here"), cache_in(tmp_path, "there")
    content = made_image(here, *LAYERS)
    reference = named(registry, "team/whole:1")
    first = await pushed(registry, reference, content)
    assert first.sent_bytes == first.size_bytes
    image = await pulled(registry, reference, there)
    assert image.manifest_digest == image.digest == first.digest == content.digest
    assert [path.read_bytes() for path in image.layers] == LAYERS
    again = await cached_image(there, image.manifest_digest, name="x")
    assert again is not None
    assert again.manifest == content.manifest
    assert (await pushed(registry, named(registry, "team/whole:2"), again)).sent_bytes == 0


async def test_blobs_of_another_repository_are_mounted(registry: Registry, tmp_path: Path) -> None:
    log_in(registry)
    content = made_image(cache_in(tmp_path, "here"), *LAYERS, comment="mount")
    source = named(registry, "team/source:1")
    await pushed(registry, source, content)
    copy = named(registry, "other/copy:1")
    assert (await pushed(registry, copy, content, mount_from=[source])).sent_bytes == 0
    image = await pulled(registry, copy, cache_in(tmp_path, "there"))
    assert image.manifest_digest == content.digest


@pytest.mark.parametrize("kind", ["basic", "bearer"])
async def test_without_or_with_the_wrong_password_nothing_is_pushed(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    registry: Registry = request.getfixturevalue(kind)
    content = made_image(cache_in(tmp_path, "here"), LAYERS[0])
    reference = named(registry, "team/refused:1")
    with pytest.raises(RegistryLoginError, match="needs a login to be pushed to") as raised:
        await pushed(registry, reference, content)
    assert f"docker login {registry.address}" in str(raised.value.hint)
    log_in(registry, password="wrong")
    with pytest.raises(RegistryLoginError, match=f"refuses the login of {USER}"):
        await pushed(registry, reference, content)
    log_in(registry)
    with pytest.raises(NotFoundError):
        await pulled(registry, reference, cache_in(tmp_path, "there"))


async def test_a_private_authority_has_to_be_named(basic: Registry, tmp_path: Path) -> None:
    log_in(basic)
    for settings in (Settings(), Settings(plain=frozenset({"elsewhere"}))):
        with pytest.raises(RegistryError, match="doesn't trust") as raised:
            await pull(named(basic, "team/x"), cache_in(tmp_path, "c"), settings=settings, limits=QUICK)
        assert "RAMET_REGISTRY_CA" in str(raised.value.hint)


async def test_a_cut_pull_is_resumed_and_fetches_no_byte_twice(anonymous: Registry, tmp_path: Path) -> None:
    content = made_image(cache_in(tmp_path, "here"), *LAYERS, comment="cut")
    await pushed(anonymous, named(anonymous, "team/cut:1"), content)
    proxy = CuttingProxy(anonymous.address, cuts=9, down=600_000)
    with proxy.serving() as address:
        image = await pulled(anonymous, named(anonymous, "team/cut:1", address), cache_in(tmp_path, "there"))
    assert [path.read_bytes() for path in image.layers] == LAYERS
    assert proxy.made_cuts == 9
    assert image.fetched_bytes == image.manifest.size_bytes
    # All heads and documents included, and what was under way at a cut.
    assert proxy.passed["down"] < SIZE + 200_000


async def test_a_cut_push_begins_the_blob_anew(anonymous: Registry, tmp_path: Path) -> None:
    content = made_image(cache_in(tmp_path, "here"), *LAYERS, comment="cut push")
    proxy = CuttingProxy(anonymous.address, cuts=3, up=1_000_000)
    with proxy.serving() as address:
        fresh = named(anonymous, "team/cutpush:1", address)
        first = await pushed(anonymous, fresh, content)
    assert first.sent_bytes == first.size_bytes
    assert proxy.made_cuts == 3
    image = await pulled(anonymous, named(anonymous, "team/cutpush:1"), cache_in(tmp_path, "there"))
    assert [path.read_bytes() for path in image.layers] == LAYERS


async def test_a_push_that_stays_cut_leaves_the_tag_as_it_was(anonymous: Registry, tmp_path: Path) -> None:
    here = cache_in(tmp_path, "here")
    old = made_image(here, LAYERS[0], comment="old")
    await pushed(anonymous, named(anonymous, "team/stays:1"), old)
    new = made_image(here, random.Random(9).randbytes(1_500_000), comment="new")
    proxy = CuttingProxy(anonymous.address, cuts=1000, up=100_000)
    with proxy.serving() as address, pytest.raises(RegistryError, match="4 further tries"):
        await pushed(anonymous, named(anonymous, "team/stays:1", address), new)
    image = await pulled(anonymous, named(anonymous, "team/stays:1"), cache_in(tmp_path, "there"))
    assert image.manifest_digest == old.digest


async def test_a_token_that_has_ended_is_renewed_in_the_middle(bearer: Registry, tmp_path: Path) -> None:
    assert bearer.tokens is not None
    log_in(bearer)
    content = made_image(cache_in(tmp_path, "here"), *LAYERS, comment="expired")
    reference = named(bearer, "team/expired:1")
    await pushed(bearer, reference, content)
    transport = Transport(bearer.settings, QUICK)
    client = RegistryClient(transport, endpoints(bearer.address, bearer.settings)[0], "https", "team/expired")
    try:
        await client.manifest(reference)
        ended = bearer.tokens.token(["repository:team/expired:pull"], life_s=-5)
        client._authorizer._header = f"Bearer {ended}"
        asked = len(bearer.tokens.asked)
        there = cache_in(tmp_path, "there")
        for blob, path in content.blobs:
            fetched = await there.fetch(blob, client.blob)
            assert fetched.read_bytes() == path.read_bytes()
        assert len(bearer.tokens.asked) == asked + 1
    finally:
        await transport.close()


async def test_tokens_are_asked_for_once_with_all_that_a_push_needs(bearer: Registry, tmp_path: Path) -> None:
    assert bearer.tokens is not None
    log_in(bearer)
    content = made_image(cache_in(tmp_path, "here"), *LAYERS, comment="scopes")
    bearer.tokens.asked.clear()
    await pushed(bearer, named(bearer, "team/scopes:1"), content, mount_from=[named(bearer, "team/base:1")])
    assert bearer.tokens.asked == [["repository:team/scopes:pull,push", "repository:team/base:pull"]]


async def test_two_processes_fetch_once(anonymous: Registry, tmp_path: Path) -> None:
    content = made_image(cache_in(tmp_path, "here"), *LAYERS, comment="two processes")
    await pushed(anonymous, named(anonymous, "team/two:1"), content)
    program = """
import sys, anyio
from pathlib import Path
from ramet.oci.blobs import BlobCache
from ramet.oci.documents import Platform
from ramet.oci.pull import pull
from ramet.oci.reference import Reference
image = anyio.run(lambda: pull(Reference.parse(sys.argv[1]), BlobCache(Path(sys.argv[2])),
                               platform=Platform("linux", "amd64")))
print(image.manifest_digest)
"""
    proxy = CuttingProxy(anonymous.address)
    with proxy.serving() as address:
        command = [sys.executable, "-c", program, f"{address}/team/two:1", str(tmp_path / "there")]
        pulls = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        outputs = [pull.communicate(timeout=60)[0] for pull in pulls]
    assert outputs == [f"{content.digest}\n"] * 2
    assert proxy.passed["down"] < SIZE * 1.1


async def _put_index(registry: Registry, reference: Reference, images: dict[str, ImageContent]) -> Digest:
    entries = [
        {
            "mediaType": image.media_type,
            "size": len(image.manifest),
            "digest": str(image.digest),
            "platform": {"os": "linux", "architecture": architecture},
        }
        for architecture, image in images.items()
    ]
    index = {"schemaVersion": 2, "mediaType": f"{KIND}.index.v1+json", "manifests": entries}
    transport = Transport(registry.settings, QUICK)
    server = endpoints(registry.address, registry.settings)[0]
    try:
        uploader = Uploader(RegistryClient(transport, server, "http", reference.repository))
        return await uploader.put_manifest(
            json.dumps(index).encode(), f"{KIND}.index.v1+json", reference.wanted
        )
    finally:
        await transport.close()


async def test_the_image_of_this_platform_is_taken_from_an_index(anonymous: Registry, tmp_path: Path) -> None:
    here = cache_in(tmp_path, "here")
    images = {
        "arm64": made_image(here, LAYERS[0], architecture="arm64"),
        "amd64": made_image(here, LAYERS[1]),
    }
    for architecture, image in images.items():
        await pushed(anonymous, named(anonymous, f"team/many:{architecture}"), image)
    index = await _put_index(anonymous, named(anonymous, "team/many:1"), images)
    found = await pulled(anonymous, named(anonymous, "team/many:1"), cache_in(tmp_path, "there"))
    assert (found.digest, found.manifest_digest) == (index, images["amd64"].digest)
    assert [path.read_bytes() for path in found.layers] == [LAYERS[1]]


def _kept(cache_directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (cache_directory / "blobs").rglob("*") if path.is_file()}


@pytest.mark.parametrize("fault", ["changed", "cut", "gone"])
async def test_a_layer_that_the_registry_has_lost_is_one_error_and_the_cache_as_before(
    anonymous: Registry, tmp_path: Path, fault: str
) -> None:
    layer = random.Random(fault).randbytes(700_000)
    content = made_image(cache_in(tmp_path, "here"), LAYERS[0], layer, comment=fault)
    reference = named(anonymous, f"team/{fault}:1")
    await pushed(anonymous, reference, content)
    digits = Digest.of(layer).hexadecimal
    stored = anonymous.content / "docker/registry/v2/blobs/sha256" / digits[:2] / digits / "data"
    if fault == "changed":
        stored.write_bytes(layer[:-1] + bytes([layer[-1] ^ 1]))
    elif fault == "cut":
        stored.write_bytes(layer[:300_000])
    else:
        stored.unlink()
    expected = {"changed": DamagedError, "cut": DamagedError, "gone": NotFoundError}[fault]
    with pytest.raises(expected) as raised:
        await pulled(anonymous, reference, cache_in(tmp_path, "there"))
    assert Digest.of(layer).short in raised.value.message
    assert raised.value.hint
    kept = _kept(tmp_path / "there")
    assert all(Digest.of(data).hexadecimal == name for name, data in kept.items())
    assert digits not in kept
    stored.write_bytes(layer)
    assert (await pulled(anonymous, reference, cache_in(tmp_path, "there"))).layers[1].read_bytes() == layer


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("team/nothing:1", NotFoundError, "has no image"),
        ("team/whole2:no-such-tag", NotFoundError, "has no image"),
        ("team/arm:1", NotFoundError, "linux/arm64"),
    ],
)
async def test_what_isnt_there_is_named(
    anonymous: Registry, tmp_path: Path, name: str, kind: type[RametError], words: str
) -> None:
    here = cache_in(tmp_path, "here")
    await pushed(anonymous, named(anonymous, "team/whole2:1"), made_image(here, LAYERS[0]))
    arm = made_image(here, LAYERS[0], architecture="arm64")
    await pushed(anonymous, named(anonymous, "team/arm:1"), arm)
    with pytest.raises(kind, match=words) as raised:
        await pulled(anonymous, named(anonymous, name), cache_in(tmp_path, "there"))
    assert raised.value.hint


async def test_a_file_that_isnt_its_blob_isnt_sent(anonymous: Registry, tmp_path: Path) -> None:
    here = cache_in(tmp_path, "here")
    content = made_image(here, random.Random(77).randbytes(500_000))
    path = content.blobs[0][1]
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(DamagedError, match="wasn't sent"):
        await pushed(anonymous, named(anonymous, "team/wrong:1"), content)
    path.write_bytes(b"short")
    with pytest.raises(DamagedError, match="wasn't sent"):
        await pushed(anonymous, named(anonymous, "team/wrong:1"), content)
    with pytest.raises(NotFoundError):
        await pulled(anonymous, named(anonymous, "team/wrong:1"), cache_in(tmp_path, "there"))


async def test_connections_are_used_again(anonymous: Registry, tmp_path: Path) -> None:
    content = made_image(cache_in(tmp_path, "here"), *LAYERS, comment="connections")
    proxy = CuttingProxy(anonymous.address)
    with proxy.serving() as address:
        await pushed(anonymous, named(anonymous, "team/again:1", address), content)
        # One that TLS is tried on, and four blobs at once; of each blob a HEAD, a POST and a PUT.
        assert proxy.connections <= 6
        await pulled(anonymous, named(anonymous, "team/again:1", address), cache_in(tmp_path, "there"))
    assert proxy.connections <= 12
