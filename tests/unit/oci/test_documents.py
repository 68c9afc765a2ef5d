from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.errors import RametError, RegistryError
from ramet.oci import documents
from ramet.oci.documents import Index, Manifest, Platform, read_config, read_manifest
from ramet.oci.platforms import fits

SHA = "sha256:" + "0" * 64
LAYER: dict[str, Any] = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "size": 1, "digest": SHA}
CONFIG = {"mediaType": documents.OCI_CONFIG, "size": 1, "digest": SHA}
MANIFEST: dict[str, Any] = {"schemaVersion": 2, "config": CONFIG, "layers": [LAYER]}


def read(document: Any, media_type: str | None = documents.OCI_MANIFEST) -> Manifest | Index:
    content = document if isinstance(document, bytes) else json.dumps(document).encode()
    return read_manifest(content, media_type=media_type, name="x")


def test_kinds_by_their_own_type_then_the_announced_one_then_their_members() -> None:
    index = {"schemaVersion": 2, "manifests": []}
    assert isinstance(read(MANIFEST, None), Manifest)
    assert isinstance(read(index, None), Index)
    assert isinstance(read(index, documents.DOCKER_LIST + "; charset=utf-8"), Index)
    assert isinstance(read({**MANIFEST, "mediaType": documents.DOCKER_MANIFEST}, "text/plain"), Manifest)


@pytest.mark.parametrize(
    ("document", "why"),
    [
        ({"schemaVersion": 1, "fsLayers": []}, "schema 1"),
        ({**MANIFEST, "schemaVersion": 3}, "schema 3"),
        ({**MANIFEST, "manifests": []}, "index and an image at once"),
        ({**MANIFEST, "layers": []}, "no layers"),
        ({**MANIFEST, "layers": [LAYER] * 513}, "513 layers"),
        ({**MANIFEST, "layers": [{**LAYER, "size": -1}]}, "-1 bytes"),
        ({**MANIFEST, "layers": [{**LAYER, "size": 1 << 50}]}, "are allowed"),
        ({**MANIFEST, "layers": [{**LAYER, "digest": "sha256:0"}]}, "malformed"),
        ({**MANIFEST, "layers": [{**LAYER, "digest": "../../x"}]}, "malformed"),
        ({**MANIFEST, "layers": [{**LAYER, "mediaType": LAYER["mediaType"] + "+encrypted"}]}, "encrypted"),
        (
            {
                **MANIFEST,
                "layers": [
                    {**LAYER, "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"}
                ],
            },
            "may not be distributed",
        ),
        (
            {**MANIFEST, "config": {**CONFIG, "mediaType": "application/vnd.cncf.helm.config.v1+json"}},
            "artifact",
        ),
        ({**MANIFEST, "layers": "x"}, "malformed"),
        (b"<html>", "HTML"),
        (b"", "malformed"),
        (b"[" * 100_000, "malformed"),
        (b" " * (4 << 20) + b"{}", "bytes, more than"),
        ({"schemaVersion": 2}, "no image"),
    ],
)
def test_what_is_refused(document: Any, why: str) -> None:
    media_type = None if document == {"schemaVersion": 2} else documents.OCI_MANIFEST
    with pytest.raises(RegistryError, match=why):
        read(document, media_type)


def test_a_configuration_with_other_layers_than_the_manifest() -> None:
    manifest = read(MANIFEST)
    assert isinstance(manifest, Manifest)
    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [SHA]},
        "config": None,
    }
    assert read_config(json.dumps(config).encode(), manifest=manifest, name="x").config is None
    config["rootfs"] = {"type": "layers", "diff_ids": [SHA, SHA]}
    with pytest.raises(RegistryError, match="has 2 layers, its manifest 1"):
        read_config(json.dumps(config).encode(), manifest=manifest, name="x")


@given(st.binary(max_size=200))
def test_any_bytes_are_a_document_or_an_error_of_ramets(content: bytes) -> None:
    for media_type in (documents.OCI_MANIFEST, documents.OCI_INDEX, None):
        try:
            read(content, media_type)
        except RametError:
            continue


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@given(st.sampled_from(["schemaVersion", "mediaType", "config", "layers", "manifests", "annotations"]), _JSON)
def test_a_manifest_with_any_member_replaced(member: str, value: Any) -> None:
    try:
        read({**MANIFEST, member: value})
    except RametError:
        pass  # any other error fails the test


def test_variants() -> None:
    arm = Platform("linux", "arm64")
    assert fits(Platform("linux", "arm64", "v8"), arm)
    assert not fits(Platform("linux", "amd64", "v3"), Platform("linux", "amd64"))
    assert not fits(Platform("linux", "arm", "v7"), Platform("linux", "arm", "v6"))
