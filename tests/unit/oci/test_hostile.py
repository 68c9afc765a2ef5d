"""Registries that lead clients to this machine, drip, or lie; caches in which others have been."""

from __future__ import annotations

import json
import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ramet.errors import NotFoundError, RegistryError
from ramet.oci.answers import Limits
from ramet.oci.blobs import BlobCache, Patience
from ramet.oci.digests import Digest
from ramet.oci.documents import Descriptor, Platform
from ramet.oci.places import is_near
from ramet.oci.pull import PulledImage, pull
from ramet.oci.push import ImageContent, push
from ramet.oci.reference import Reference
from ramet.oci.settings import Settings
from tests.unit.oci.registry_server import Registry, serving

pytestmark = pytest.mark.anyio
LAYER = random.Random(5).randbytes(200_000)
QUICK = Limits(connect_s=5, silence_s=5, busy_tries=2, busy_first_s=0.01)
HASTE = Patience(first_s=0.01, longest_s=0.02)
REMOTE = "r.example"
"""A registry that is reached through a proxy, so it is no neighbour."""


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    with serving(Registry()) as running:
        for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "ALL_PROXY", "HTTPS_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HTTP_PROXY", f"http://{running.address}")
        monkeypatch.setenv("NO_PROXY", "inner.example")
        yield running


@pytest.fixture
def inner() -> Iterator[Registry]:
    """A service on this machine that nobody from outside may reach."""
    with serving(Registry()) as running:
        running.add_image(LAYER)
        yield running


@pytest.fixture(autouse=True)
def _no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "DOCKER_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture(autouse=True)
def _inner_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """`inner.example` is a name of this machine, as anybody's name server may say."""
    resolve = socket.getaddrinfo

    def resolved(host: Any, *arguments: Any, **more: Any) -> Any:
        return resolve(
            "127.0.0.1" if host in ("inner.example", b"inner.example") else host, *arguments, **more
        )

    monkeypatch.setattr(socket, "getaddrinfo", resolved)


def log_in(directory: Path, registry: str, **entry: str) -> None:
    (directory / ".docker").mkdir()
    (directory / ".docker" / "config.json").write_text(json.dumps({"auths": {registry: entry}}))


async def pulled(
    registry: str, directory: Path, *, limits: Limits = QUICK, plain: str = REMOTE
) -> PulledImage:
    cache = BlobCache(directory / "oci", patience=HASTE)
    settings = Settings(plain=frozenset({plain}))
    reference = Reference.parse(f"{registry}/team/x")
    return await pull(reference, cache, settings=settings, platform=Platform("linux", "amd64"), limits=limits)


@pytest.mark.parametrize(
    ("address", "near"),
    [
        *[(name, True) for name in ("127.0.0.1", "127.9.9.9", "localhost", "a.localhost", "::1")],
        *[(name, True) for name in ("169.254.169.254", "fe80::1", "fe80::1%eth0", "0.0.0.0", "::")],
        *[(name, True) for name in ("::ffff:127.0.0.1", "::ffff:169.254.169.254", "fd00:ec2::254")],
        ("100.100.100.200", True),
        *[(name, False) for name in ("10.0.0.1", "192.168.1.1", "8.8.8.8", "registry.example", "fd00::1")],
    ],
)
def test_this_machine_its_link_and_metadata_services_are_near(address: str, near: bool) -> None:
    assert is_near(address) is near


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "inner.example", "[::ffff:127.0.0.1]"])
@pytest.mark.parametrize("way", ["redirect", "realm"])
async def test_a_registry_elsewhere_cannot_lead_to_this_machine(
    registry: Registry, inner: Registry, tmp_path: Path, host: str, way: str
) -> None:
    registry.add_image(LAYER)
    place = f"{host}:{inner.address.rpartition(':')[2]}"
    if way == "redirect":
        registry.redirect_to = place
    else:
        registry.tokens, registry.realm = True, f"http://{place}/token"
    with pytest.raises(RegistryError, match="which is this machine"):
        await pulled(REMOTE, tmp_path)
    assert inner.requests == []


async def test_a_registry_on_this_machine_may_lead_there(
    registry: Registry, inner: Registry, tmp_path: Path
) -> None:
    registry.add_image(LAYER)
    registry.redirect_to = inner.address
    image = await pulled(registry.address, tmp_path)
    assert image.layers[0].read_bytes() == LAYER
    assert inner.asked("/blobs/")


async def test_a_token_server_that_knows_no_post_gets_the_token_as_a_password(
    registry: Registry, tmp_path: Path
) -> None:
    registry.add_image(LAYER)
    registry.tokens, registry.no_post, registry.token_user = True, True, "ramet:secret"
    log_in(tmp_path, registry.address, identitytoken="secret")
    assert (await pulled(registry.address, tmp_path)).layers[0].read_bytes() == LAYER


@pytest.mark.timing
async def test_a_server_that_drips_is_given_up(registry: Registry, tmp_path: Path) -> None:
    registry.add_image(LAYER)
    registry.drip = 0.02
    limits = Limits(connect_s=5, silence_s=5, slow_s=0.1, slow_bytes=5000)
    with pytest.raises(RegistryError, match=r"sent only .* further tries") as raised:
        await pulled(registry.address, tmp_path, limits=limits)
    assert "kept" in str(raised.value.hint)
    assert 0 < sum(path.stat().st_size for path in (tmp_path / "oci" / "partial").iterdir()) < len(LAYER)
    registry.drip = 0
    assert (await pulled(registry.address, tmp_path)).layers[0].read_bytes() == LAYER


@pytest.mark.timing
async def test_a_server_that_drips_its_head_is_given_up(tmp_path: Path) -> None:
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)

        def drip() -> None:
            while not ended.is_set():
                connection, _ = server.accept()
                with connection:
                    try:
                        connection.sendall(b"HTTP/1.1 200 OK\r\n")
                        while not ended.is_set():
                            connection.sendall(b"X-More: 1\r\n")
                            time.sleep(0.02)
                    except OSError:
                        continue

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            address = f"127.0.0.1:{server.getsockname()[1]}"
            limits = Limits(connect_s=5, silence_s=5, answer_s=0.2)
            with pytest.raises(RegistryError, match="takes too long to answer"):
                await pulled(address, tmp_path, limits=limits, plain=address)
        finally:
            ended.set()
            with socket.socket() as last:
                last.connect(server.getsockname())
            thread.join()


@pytest.mark.parametrize("kind", ["symlink", "hard link", "fifo", "directory link"])
async def test_what_others_left_in_the_cache_is_replaced_and_not_followed(
    registry: Registry, tmp_path: Path, kind: str
) -> None:
    registry.add_image(LAYER)
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    partial = BlobCache(tmp_path / "oci").partial(Digest.of(LAYER))
    partial.parent.mkdir(parents=True)
    if kind == "symlink":
        partial.symlink_to(victim)
    elif kind == "hard link":
        os.link(victim, partial)
    elif kind == "fifo":
        os.mkfifo(partial)
    else:
        partial.symlink_to(tmp_path)
    image = await pulled(registry.address, tmp_path)
    assert image.layers[0].read_bytes() == LAYER
    assert not image.layers[0].is_symlink()
    assert victim.read_bytes() == b"precious"


async def test_a_wrong_blob_of_the_right_size_is_found_and_fetched_anew(
    registry: Registry, tmp_path: Path
) -> None:
    registry.add_image(LAYER)
    image = await pulled(registry.address, tmp_path)
    cache = BlobCache(tmp_path / "oci")
    image.layers[0].chmod(0o600)
    image.layers[0].write_bytes(bytes(len(LAYER)))
    assert await cache.drop_wrong(image.manifest.layers) == 1
    assert await cache.drop_wrong(image.manifest.layers) == 0
    assert (await pulled(registry.address, tmp_path)).layers[0].read_bytes() == LAYER
    manifest = cache.path(image.manifest_digest)
    manifest.chmod(0o600)
    manifest.write_bytes(bytes(manifest.stat().st_size))
    await pulled(registry.address, tmp_path)
    assert Digest.of(manifest.read_bytes()) == image.manifest_digest


async def test_a_registry_that_takes_no_pushes_says_so(registry: Registry, tmp_path: Path) -> None:
    """The stdlib server answers a POST with 404, as a pull-through cache does."""
    path = tmp_path / "blob"
    path.write_bytes(LAYER)
    blob = Descriptor("application/vnd.oci.image.layer.v1.tar", len(LAYER), str(Digest.of(LAYER)))
    content = ImageContent(b"{}", "application/vnd.oci.image.manifest.v1+json", ((blob, path),))
    with pytest.raises(RegistryError, match="has no repository team/y to push to"):
        await push(
            Reference.parse(f"{registry.address}/team/y"),
            content,
            settings=Settings(),
            limits=QUICK,
            patience=HASTE,
        )


@pytest.mark.parametrize(
    "place",
    [
        *(
            "http:////[",
            "https://axn--:99999?::1",
            "https://a%00xn--file:",
            "http://..]xn--0x7f.1",
            "http://[::1",
        ),
        *(
            "file:///etc/passwd",
            "javascript:x",
            "http://a..b/",
            "https://" + "a" * 300 + "/",
            "http://h:99999/",
        ),
    ],
)
@pytest.mark.parametrize("way", ["redirect", "realm"])
async def test_a_place_that_is_no_address_is_one_error(
    registry: Registry, tmp_path: Path, place: str, way: str
) -> None:
    registry.add_image(LAYER)
    if way == "redirect":
        registry.location = place
    else:
        registry.tokens, registry.realm = True, place
    with pytest.raises((RegistryError, NotFoundError)):  # some are taken for a place on the same server
        await pulled(registry.address, tmp_path)
