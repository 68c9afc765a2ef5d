"""OCI layouts and archives of `docker save` for tests, as the tools write them."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.unit.images.layer_tars import member, tar
from tests.unit.oci.registry_server import digest_of

Contents = dict[str, bytes]
"""Files by their names in a layout or an archive."""
TAG = "org.opencontainers.image.ref.name"
NAME = "io.containerd.image.name"
LAYERS = [
    tar([member("etc", tarfile.DIRTYPE, mode=0o755), member("etc/motd", data=b"hello"), member("gone")]),
    tar([member(".wh.gone"), member("bin/tool", data=b"x" * 9000, mode=0o4755, owner=(7, 2_000_000_000))]),
]


SETTINGS = {"Cmd": ["/bin/tool"], "Env": ["A=b"], "WorkingDir": "/etc", "StopSignal": "SIGINT"}
"""The `config` of an image's configuration."""


def config_of(
    layers: Sequence[bytes], *, platform: str = "linux/amd64", settings: Mapping[str, Any] = SETTINGS
) -> bytes:
    system, architecture = platform.split("/")
    return json.dumps(
        {
            "os": system,
            "architecture": architecture,
            "config": settings,
            "rootfs": {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]},
        }
    ).encode()


def blob(contents: Contents, data: bytes, media_type: str, **more: Any) -> dict[str, Any]:
    """Put a blob into a layout. Returns its descriptor."""
    digest = digest_of(data)
    contents["blobs/" + digest.replace(":", "/")] = data
    return {"mediaType": media_type, "digest": digest, "size": len(data), **more}


def image_in(
    contents: Contents,
    layers: Sequence[bytes] = LAYERS,
    *,
    platform: str = "linux/amd64",
    settings: Mapping[str, Any] = SETTINGS,
    suffix: str = "+gzip",
    annotations: Mapping[str, str] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Put an image into a layout. Returns the descriptor of its manifest."""
    kind = "application/vnd.oci.image.layer.v1.tar"
    described = [
        blob(contents, gzip.compress(layer, 1, mtime=0) if suffix == "+gzip" else layer, kind + suffix)
        for layer in layers
    ]
    config = blob(
        contents,
        config_of(layers, platform=platform, settings=settings),
        "application/vnd.oci.image.config.v1+json",
    )
    manifest = {"schemaVersion": 2, "config": config, "layers": described}
    if annotations:
        more["annotations"] = dict(annotations)
    return blob(contents, json.dumps(manifest).encode(), "application/vnd.oci.image.manifest.v1+json", **more)


def index_of(manifests: Sequence[dict[str, Any]]) -> bytes:
    return json.dumps({"schemaVersion": 2, "manifests": list(manifests)}).encode()


def layout(*manifests: dict[str, Any], contents: Contents) -> Contents:
    contents["oci-layout"] = b'{"imageLayoutVersion": "1.0.0"}'
    contents["index.json"] = index_of(manifests)
    return contents


def one_image(**keywords: Any) -> Contents:
    contents: Contents = {}
    return layout(image_in(contents, **keywords), contents=contents)


def docker_save(images: Mapping[str, Sequence[bytes]], *, oci: bool = False) -> Contents:
    """The files of an archive of `docker save`: up to release 24, or the later form that is a layout, too."""
    contents: Contents = {}
    listed = []
    for name, layers in images.items():
        config = config_of(layers)
        digits = hashlib.sha256(config).hexdigest()
        if oci:
            image_in(contents, layers, suffix="")
            paths = [f"blobs/sha256/{hashlib.sha256(layer).hexdigest()}" for layer in layers]
            listed.append({"Config": f"blobs/sha256/{digits}", "RepoTags": [name], "Layers": paths})
            continue
        paths = []
        for layer in layers:
            path = f"{hashlib.sha256(layer).hexdigest()}/layer.tar"
            contents[f"{path[:-9]}VERSION"] = b"1.0"
            contents[path] = layer
            paths.append(path)
        contents[f"{digits}.json"] = config
        listed.append({"Config": f"{digits}.json", "RepoTags": [name], "Layers": paths})
    contents["manifest.json"] = json.dumps(listed).encode()
    return contents


def write(contents: Contents, directory: Path) -> Path:
    for name, data in contents.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return directory


def archive(contents: Contents, path: Path, *, prefix: str = "") -> Path:
    """An archive of these files, in their order."""
    with tarfile.open(path, "w") as made:
        for name, data in contents.items():
            info = tarfile.TarInfo(prefix + name)
            info.size = len(data)
            made.addfile(info, io.BytesIO(data))
    return path
