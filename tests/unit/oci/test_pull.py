from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from ramet import progress
from ramet.errors import (
    DamagedError,
    FilesystemError,
    NotFoundError,
    RametError,
    RegistryError,
    RegistryLoginError,
)
from ramet.oci.answers import Limits
from ramet.oci.blobs import BlobCache, Patience
from ramet.oci.client import RegistryClient
from ramet.oci.digests import Digest
from ramet.oci.documents import Platform
from ramet.oci.pull import PulledImage, pull
from ramet.oci.reference import Reference
from ramet.oci.settings import Endpoint, Settings, endpoints
from ramet.oci.transport import Transport
from ramet.system.files import write_all
from tests.unit.oci.registry_server import OCI, Registry, serving

pytestmark = pytest.mark.anyio

AMD64 = Platform("linux", "amd64")
LAYERS = [random.Random(seed).randbytes(3_000_000 + seed) for seed in range(3)]
QUICK = Limits(connect_s=5, silence_s=5, busy_tries=4, busy_first_s=0.01)
SETTINGS = Settings()


@pytest.fixture
def registry() -> Iterator[Registry]:
    with serving(Registry()) as running:
        yield running


@pytest.fixture(autouse=True)
def _no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "DOCKER_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def log_in(directory: Path, registry: Registry, **entry: str) -> None:
    (directory / ".docker").mkdir()
    document = {"auths": {registry.address: entry}}
    (directory / ".docker" / "config.json").write_text(json.dumps(document))


def cache_in(directory: Path) -> BlobCache:
    return BlobCache(directory / "oci", patience=Patience(first_s=0.01, longest_s=0.02))


async def pulled(
    registry: Registry, directory: Path, *, tag: str = "latest", settings: Settings = SETTINGS
) -> PulledImage:
    reference = Reference.parse(f"{registry.address}/team/x:{tag}")
    return await pull(reference, cache_in(directory), settings=settings, platform=AMD64, limits=QUICK)


def nothing_half_published(directory: Path) -> bool:
    blobs = list((directory / "oci" / "blobs").rglob("*"))
    return all(Digest.of(path.read_bytes()).hexadecimal == path.name for path in blobs if path.is_file())


async def test_all_parts_are_in_the_cache_and_the_second_pull_fetches_no_layer(
    registry: Registry, tmp_path: Path
) -> None:
    registry.add_image(*LAYERS)
    image = await pulled(registry, tmp_path)
    assert [path.read_bytes() for path in image.layers] == LAYERS
    assert image.config.config is not None
    assert image.config.config.cmd == ["true"]
    assert all(path.stat().st_mode & 0o777 == 0o444 for path in image.layers)
    again = await pulled(registry, tmp_path)
    assert again.fetched_bytes == 0
    assert len(registry.asked("/blobs/")) == 1 + len(LAYERS)
    assert list((tmp_path / "oci" / "partial").iterdir()) == []


async def test_progress_ends_at_the_total_even_through_cuts(registry: Registry, tmp_path: Path) -> None:
    registry.add_image(*LAYERS)
    registry.cut_after, registry.cuts = 1_000_000, 5
    reports: list[progress.Progress] = []
    with progress.received_by(reports.append):
        image = await pulled(registry, tmp_path)
    assert reports[-1].done == reports[-1].total == image.manifest.size_bytes
    assert image.fetched_bytes == image.manifest.size_bytes


async def test_a_cut_transfer_is_resumed_where_it_was_cut(registry: Registry, tmp_path: Path) -> None:
    registry.add_image(LAYERS[0])
    registry.cut_after, registry.cuts = 1_000_000, 2
    image = await pulled(registry, tmp_path)
    assert image.layers[0].read_bytes() == LAYERS[0]
    ranges = [headers.get("range") for headers in registry.asked("/blobs/")]
    assert ranges[1:] == [None, "bytes=1000000-", "bytes=2000000-"]


async def test_a_server_without_ranges_begins_again(registry: Registry, tmp_path: Path) -> None:
    registry.add_image(LAYERS[0])
    registry.cut_after, registry.cuts, registry.ignore_range = 1_000_000, 1, True
    assert (await pulled(registry, tmp_path)).layers[0].read_bytes() == LAYERS[0]


async def test_a_transfer_that_stays_cut_is_given_up_and_resumed_by_the_next_pull(
    registry: Registry, tmp_path: Path
) -> None:
    image = registry.add_image(LAYERS[0])
    registry.cut_after, registry.cuts = 1_000_000, 1
    reference = Reference.parse(f"{registry.address}/team/x")
    cache = cache_in(tmp_path)
    with pytest.raises(RegistryError, match="further tries"):
        # After the first cut there is nothing more to be had.
        registry.cuts = 1
        await _cut_for_ever(registry, reference, cache)
    assert nothing_half_published(tmp_path)
    registry.cuts = 0
    before = len(registry.requests)
    assert (await pulled(registry, tmp_path)).manifest_digest == Digest.parse(image["digest"])
    ranges = [headers.get("range") for path, headers in registry.requests[before:] if "/blobs/" in path]
    assert ranges == ["bytes=1000000-"]


async def _cut_for_ever(registry: Registry, reference: Reference, cache: BlobCache) -> None:
    async def starve() -> None:
        while registry.cuts:
            await anyio.sleep(0.001)
        registry.cut_after, registry.cuts = 0, 100

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(starve)
        failure: RametError | None = None
        try:
            await pull(reference, cache, settings=SETTINGS, platform=AMD64, limits=QUICK)
        except RametError as error:
            failure = error
    if failure is not None:
        raise failure


@pytest.mark.parametrize("fault", ["same length", "longer", "shorter"])
async def test_content_of_another_digest_is_refused(registry: Registry, tmp_path: Path, fault: str) -> None:
    registry.add_image(LAYERS[0])
    name = next(name for name, content in registry.blobs.items() if content is LAYERS[0])
    wrong = {"same length": bytes(len(LAYERS[0])), "longer": LAYERS[0] + b"x", "shorter": LAYERS[0][:-1]}
    registry.blobs[name] = wrong[fault]
    with pytest.raises(DamagedError):
        await pulled(registry, tmp_path)
    assert nothing_half_published(tmp_path)
    registry.blobs[name] = LAYERS[0]
    assert (await pulled(registry, tmp_path)).layers[0].read_bytes() == LAYERS[0]


async def test_a_partial_file_that_a_crash_spoiled_is_fetched_from_the_beginning(
    registry: Registry, tmp_path: Path
) -> None:
    registry.add_image(LAYERS[0])
    partial = cache_in(tmp_path).partial(Digest.of(LAYERS[0]))
    partial.parent.mkdir(parents=True)
    partial.write_bytes(bytes(1_500_000))
    assert (await pulled(registry, tmp_path)).layers[0].read_bytes() == LAYERS[0]


async def test_a_blob_that_was_cut_in_the_cache_is_fetched_again(registry: Registry, tmp_path: Path) -> None:
    registry.add_image(LAYERS[0])
    path = (await pulled(registry, tmp_path)).layers[0]
    path.chmod(0o600)
    os.truncate(path, 1000)
    assert (await pulled(registry, tmp_path)).layers[0].read_bytes() == LAYERS[0]


async def test_two_pulls_at_once_fetch_each_blob_once(registry: Registry, tmp_path: Path) -> None:
    registry.add_image(*LAYERS)
    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(pulled, registry, tmp_path)
    paths = [path for path, _ in registry.requests if "/blobs/" in path]
    assert len(paths) == len(set(paths)) == 1 + len(LAYERS)


_PULL = """
import sys
from pathlib import Path
import anyio
from ramet.oci.blobs import BlobCache
from ramet.oci.documents import Platform
from ramet.oci.pull import pull
from ramet.oci.reference import Reference
from ramet.oci.settings import Settings
reference = Reference.parse(sys.argv[1])
async def main():
    cache = BlobCache(Path(sys.argv[2]))
    await pull(reference, cache, settings=Settings(), platform=Platform("linux", "amd64"))
anyio.run(main)
"""


async def test_two_processes_at_once_fetch_each_blob_once(registry: Registry, tmp_path: Path) -> None:
    registry.add_image(*LAYERS)
    argv = [sys.executable, "-c", _PULL, f"{registry.address}/team/x", str(tmp_path / "oci")]
    running = [subprocess.Popen(argv) for _ in range(2)]
    try:
        for process in running:
            assert await anyio.to_thread.run_sync(process.wait, 15) == 0
    finally:
        for process in running:
            process.kill()
            process.wait()
    paths = [path for path, _ in registry.requests if "/blobs/" in path]
    assert len(paths) == len(set(paths)) == 1 + len(LAYERS)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
async def test_a_disk_that_fails_leaves_nothing_published_and_a_full_one_no_beginning_either(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    registry.add_image(LAYERS[0])

    def fail(descriptor: int, data: bytes, offset: int) -> None:
        if offset > 1_000_000:
            raise OSError(number, os.strerror(number))
        write_all(descriptor, data, offset)

    with monkeypatch.context() as broken, pytest.raises(FilesystemError, match="can't write") as raised:
        broken.setattr("ramet.oci.blobs.write_all", fail)
        await pulled(registry, tmp_path)
    assert raised.value.number == number
    assert nothing_half_published(tmp_path)
    assert cache_in(tmp_path).partial(Digest.of(LAYERS[0])).exists() == (number == errno.EIO)
    assert (await pulled(registry, tmp_path)).layers[0].read_bytes() == LAYERS[0]


async def test_a_disk_without_room_is_told_before_anything_is_fetched(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.add_image(LAYERS[0])
    monkeypatch.setattr("ramet.oci.blobs.free_bytes", lambda _: 10_000)
    with pytest.raises(FilesystemError, match=r"9\.8 KiB are free"):
        await pulled(registry, tmp_path)
    assert len(registry.asked("/blobs/")) == 1  # the configuration, which fits


@pytest.mark.timing
async def test_a_cancelled_pull_leaves_nothing_half_published(registry: Registry, tmp_path: Path) -> None:
    registry.add_image(*LAYERS)
    with anyio.move_on_after(0.03):
        await pulled(registry, tmp_path)
    assert nothing_half_published(tmp_path)
    assert len((await pulled(registry, tmp_path)).layers) == 3


async def test_a_busy_registry_is_asked_again(registry: Registry, tmp_path: Path) -> None:
    registry.add_image(LAYERS[0])
    registry.busy = 3
    assert (await pulled(registry, tmp_path)).layers


async def test_a_registry_that_stays_busy_is_an_error_with_the_mirror_as_a_hint(
    registry: Registry, tmp_path: Path
) -> None:
    registry.add_image(LAYERS[0])
    registry.busy = 100
    with pytest.raises(RegistryError, match="no more requests") as raised:
        await pulled(registry, tmp_path)
    assert "RAMET_REGISTRY_MIRROR" in str(raised.value.hint)


async def test_redirects_to_another_server_carry_no_credentials(registry: Registry, tmp_path: Path) -> None:
    with serving(Registry()) as other:
        registry.add_image(LAYERS[0])
        other.blobs = registry.blobs
        registry.basic, registry.redirect_to = "me:secret", other.address
        log_in(tmp_path, registry, auth="bWU6c2VjcmV0")
        assert (await pulled(registry, tmp_path)).layers[0].read_bytes() == LAYERS[0]
        assert len(other.requests) == 2
        assert all("authorization" not in headers for _, headers in other.requests)
        assert "authorization" in registry.asked("/blobs/")[-1]


async def test_a_redirect_loop_ends(registry: Registry, tmp_path: Path) -> None:
    registry.loop = True
    with pytest.raises(RegistryError, match="redirects for ever"):
        await pulled(registry, tmp_path)


async def test_html_is_named(registry: Registry, tmp_path: Path) -> None:
    registry.html = True
    with pytest.raises(RegistryError, match="HTML"):
        await pulled(registry, tmp_path)


async def test_no_such_tag(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no image .*x:none"):
        await pulled(registry, tmp_path, tag="none")


async def test_tokens_are_renewed_in_the_middle_of_a_pull(registry: Registry, tmp_path: Path) -> None:
    registry.add_image(*LAYERS)
    registry.tokens, registry.token_uses = True, 2
    assert len((await pulled(registry, tmp_path)).layers) == 3
    assert 2 <= len(registry.asked("/token")) <= 5
    assert "scope=repository%3Ateam%2Fx%3Apull" in next(p for p, _ in registry.requests if "/token" in p)


@pytest.mark.timing
async def test_a_token_is_renewed_before_it_ends(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.add_image(LAYERS[0])
    registry.tokens, registry.token_life_s = True, 60
    transport = Transport(SETTINGS, QUICK)
    reference = Reference.parse(f"{registry.address}/team/x")
    endpoint = Endpoint(registry.address, registry.address, ("http",))
    client = RegistryClient(transport, endpoint, "http", "team/x")
    try:
        await client.manifest(reference)
        now = time.monotonic()
        for later_s, tokens in ((50, 1), (56, 2)):
            monkeypatch.setattr("ramet.oci.auth.monotonic", lambda later_s=later_s: now + later_s)
            await client.manifest(reference)
            assert len(registry.asked("/token")) == tokens
    finally:
        monkeypatch.undo()
        await transport.close()
    refused = [headers for headers in registry.asked("/manifests/") if "authorization" not in headers]
    assert len(refused) == 1


@pytest.mark.parametrize("entry", [{"auth": "bWU6c2VjcmV0"}, {"identitytoken": "me:secret"}])
async def test_tokens_for_a_login(registry: Registry, tmp_path: Path, entry: dict[str, str]) -> None:
    registry.add_image(LAYERS[0])
    registry.tokens, registry.token_user = True, "me:secret"
    log_in(tmp_path, registry, **entry)
    assert (await pulled(registry, tmp_path)).layers


async def test_wrong_and_missing_credentials_are_told_apart(registry: Registry, tmp_path: Path) -> None:
    registry.add_image(LAYERS[0])
    registry.basic = "me:secret"
    with pytest.raises(RegistryLoginError, match="needs a login"):
        await pulled(registry, tmp_path)
    log_in(tmp_path, registry, auth="bWU6d3Jvbmc=")
    with pytest.raises(RegistryLoginError, match="refuses the login") as raised:
        await pulled(registry, tmp_path)
    assert "wrong" not in str(raised.value)
    registry.basic, registry.tokens, registry.token_user = None, True, "me:secret"
    with pytest.raises(RegistryLoginError, match="wrong password"):
        await pulled(registry, tmp_path)


async def test_a_credential_helper_is_asked(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.add_image(LAYERS[0])
    registry.basic = "me:secret"
    helper = tmp_path / "docker-credential-mine"
    helper.write_text(
        f'#!/bin/sh\n[ "$1 $(cat)" = "get {registry.address}" ] || exit 1\n'
        """echo '{"ServerURL": "x", "Username": "me", "Secret": "secret"}'\n"""
    )
    helper.chmod(0o755)
    (tmp_path / ".docker").mkdir()
    (tmp_path / ".docker" / "config.json").write_text('{"credsStore": "mine"}')
    with pytest.raises(RegistryLoginError, match="docker-credential-mine, which isn't on PATH"):
        await pulled(registry, tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert (await pulled(registry, tmp_path)).layers


async def test_the_platform_is_chosen_from_an_index(registry: Registry, tmp_path: Path) -> None:
    entries = []
    for layer, (system, architecture, variant) in zip(
        LAYERS,
        [("linux", "arm64", "v8"), ("linux", "amd64", None), ("unknown", "unknown", None)],
        strict=True,
    ):
        entry = registry.add_image(layer, tag=None, architecture=architecture)
        platform = {"os": system, "architecture": architecture, **({"variant": variant} if variant else {})}
        entries.append({**entry, "platform": platform})
    index = {"schemaVersion": 2, "mediaType": f"{OCI}.index.v1+json", "manifests": entries}
    top = registry.add_manifest(index, "latest")
    image = await pulled(registry, tmp_path)
    assert image.layers[0].read_bytes() == LAYERS[1]
    assert str(image.digest) == top["digest"]
    assert str(image.manifest_digest) == entries[1]["digest"]
    reference = Reference.parse(f"{registry.address}/team/x@{top['digest']}")
    other = Platform("linux", "arm64")
    image = await pull(reference, cache_in(tmp_path), settings=SETTINGS, platform=other, limits=QUICK)
    assert image.layers[0].read_bytes() == LAYERS[0]
    with pytest.raises(NotFoundError, match="it has linux/amd64, linux/arm64/v8"):
        await pull(
            reference,
            cache_in(tmp_path),
            settings=SETTINGS,
            platform=Platform("linux", "s390x"),
            limits=QUICK,
        )


async def test_an_image_for_another_platform_is_refused(registry: Registry, tmp_path: Path) -> None:
    registry.add_image(LAYERS[0], architecture="arm64")
    with pytest.raises(NotFoundError, match="linux/arm64, and this is linux/amd64"):
        await pulled(registry, tmp_path)


async def test_a_certificate_that_nobody_trusts_is_no_reason_for_plain_http() -> None:
    import ssl

    import httpx2

    from ramet.oci.pull import may_speak_plainly

    error = RegistryError("x")
    error.__cause__ = httpx2.ConnectError("certificate verify failed")
    assert may_speak_plainly(error)
    error.__cause__.__cause__ = ssl.SSLCertVerificationError()
    assert not may_speak_plainly(error)


async def test_a_mirror_that_is_down_or_has_not_the_image_is_passed_over(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.add_image(LAYERS[0])
    with serving(Registry()) as empty:
        for mirror in (f"http://{empty.address}", "127.0.0.1:1"):
            both = [
                *endpoints("docker.io", replace(SETTINGS, mirror=mirror))[:1],
                Endpoint("docker.io", registry.address, ("http",)),
            ]
            monkeypatch.setattr("ramet.oci.pull.endpoints", lambda *_, both=both: both)
            image = await pull(
                Reference.parse("python"), cache_in(tmp_path), settings=SETTINGS, platform=AMD64, limits=QUICK
            )
            assert image.layers[0].read_bytes() == LAYERS[0]


async def test_a_registry_that_is_down(registry: Registry, tmp_path: Path) -> None:
    registry.address = "127.0.0.1:1"
    with pytest.raises(RegistryError, match="can't be reached"):
        await pulled(registry, tmp_path)


async def test_the_mirror_is_asked_for_the_default_registry(registry: Registry, tmp_path: Path) -> None:
    registry.add_image(LAYERS[0])
    settings = replace(SETTINGS, mirror=f"http://{registry.address}")
    image = await pull(
        Reference.parse("python"), cache_in(tmp_path), settings=settings, platform=AMD64, limits=QUICK
    )
    assert image.layers[0].read_bytes() == LAYERS[0]
    assert registry.asked("/v2/library/python/manifests/latest")
