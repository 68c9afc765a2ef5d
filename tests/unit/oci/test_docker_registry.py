"""A pull from Debian's `docker-registry`, where it is installed: the reference implementation.

Never its own configuration or service: those listen on every address.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest

from ramet.oci.blobs import BlobCache
from ramet.oci.documents import Platform
from ramet.oci.pull import pull
from ramet.oci.reference import Reference
from ramet.oci.settings import Settings

pytestmark = pytest.mark.anyio
LAYERS = [random.Random(seed).randbytes(2_000_000 + seed) for seed in range(3)]


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("docker-registry isn't installed here (Debian's package docker-registry)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    configuration = tmp_path / "registry.yml"
    storage = {"filesystem": {"rootdirectory": str(tmp_path / "registry")}}
    configuration.write_text(json.dumps({"version": "0.1", "storage": storage, "http": {"addr": address}}))
    running = subprocess.Popen(
        [program, "serve", configuration], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield address
    finally:
        running.kill()
        running.wait()


async def _push(address: str, *layers: bytes) -> None:
    """Put an image `team/x:1` there (distribution-spec, "Push")."""
    base = f"http://{address}/v2/team/x"
    async with httpx2.AsyncClient(trust_env=False) as client:

        async def put(content: bytes) -> dict[str, Any]:
            digest = "sha256:" + hashlib.sha256(content).hexdigest()
            place = (await client.post(f"{base}/blobs/uploads/")).headers["location"]
            url = httpx2.URL(place).copy_merge_params({"digest": digest})
            assert (await client.put(url, content=content)).status_code == 201
            return {"digest": digest, "size": len(content)}

        with anyio.fail_after(20):
            while True:
                try:
                    await client.get(f"http://{address}/v2/")
                    break
                except httpx2.ConnectError:
                    await anyio.sleep(0.02)
        digests = ["sha256:" + hashlib.sha256(layer).hexdigest() for layer in layers]
        rootfs = {"type": "layers", "diff_ids": digests}
        config = json.dumps({"architecture": "amd64", "os": "linux", "rootfs": rootfs}).encode()
        kind = "application/vnd.oci.image"
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{kind}.manifest.v1+json",
            "config": {"mediaType": f"{kind}.config.v1+json", **await put(config)},
            "layers": [{"mediaType": f"{kind}.layer.v1.tar", **await put(layer)} for layer in layers],
        }
        headers = {"Content-Type": f"{kind}.manifest.v1+json"}
        answer = await client.put(
            f"{base}/manifests/1", content=json.dumps(manifest).encode(), headers=headers
        )
        assert answer.status_code == 201, answer.text


async def test_a_pull_and_a_resumed_pull(address: str, tmp_path: Path) -> None:
    await _push(address, *LAYERS)
    cache = BlobCache(tmp_path / "cache")
    reference = Reference.parse(f"{address}/team/x:1")
    platform = Platform("linux", "amd64")
    image = await pull(reference, cache, settings=Settings(), platform=platform)
    assert [path.read_bytes() for path in image.layers] == LAYERS
    digest = image.manifest.layers[0].checked_digest
    image.layers[0].unlink()
    cache.partial(digest).write_bytes(LAYERS[0][:1_500_000])
    again = await pull(reference, cache, settings=Settings(), platform=platform)
    assert again.layers[0].read_bytes() == LAYERS[0]
    assert again.fetched_bytes == len(LAYERS[0]) - 1_500_000
