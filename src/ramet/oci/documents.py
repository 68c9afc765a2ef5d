"""Manifests, indexes and image configurations: read, bounded, checked.

All texts come from a registry or an archive that nobody vouches for, so each document has a largest size,
each list a largest length, and what ramet can't unpack is refused by name.

Sources: OCI image-spec, manifest.md, image-index.md, config.md, descriptor.md, media-types.md; Docker
"Image Manifest Version 2, Schema 2".
"""

from __future__ import annotations

from typing import Any, Final, TypeVar

import msgspec

from ramet.errors import DamagedError, RegistryError, UsageError
from ramet.oci.digests import Digest
from ramet.text import printable

D = TypeVar("D", bound=msgspec.Struct)

OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"

INDEX_TYPES: Final = frozenset({OCI_INDEX, DOCKER_LIST})
MANIFEST_TYPES: Final = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
CONFIG_TYPES: Final = frozenset({OCI_CONFIG, DOCKER_CONFIG})

LAYER_COMPRESSIONS: Final = {
    "application/vnd.oci.image.layer.v1.tar": "",
    "application/vnd.oci.image.layer.v1.tar+gzip": "gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd": "zstd",
    "application/vnd.docker.image.rootfs.diff.tar": "",
    "application/vnd.docker.image.rootfs.diff.tar.gzip": "gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd": "zstd",
}
"""The media types of layers that ramet unpacks, with their compression."""

MOST_MANIFEST_BYTES: Final = 4 << 20
"""The size that every registry takes (distribution-spec, "Pushing Manifests")."""
MOST_CONFIG_BYTES: Final = 8 << 20
MOST_LAYERS: Final = 512
MOST_INDEX_ENTRIES: Final = 1024
MOST_LAYER_BYTES: Final = 1 << 40
_MOST_SHOWN: Final = 200

_UNPACKABLE: Final = {
    "+encrypted": "it is encrypted",
    "nondistributable": "it may not be distributed, so its registry hasn't got it",
    "foreign": "it may not be distributed, so its registry hasn't got it",
}


class Platform(msgspec.Struct, frozen=True):
    """A machine that an image runs on, in Go's words: `linux`, `amd64`, and for ARM a variant."""

    os: str = ""
    architecture: str = ""
    variant: str | None = None

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


class Descriptor(msgspec.Struct, frozen=True, rename="camel"):
    """A pointer to content: its media type, its size in bytes and its digest."""

    media_type: str
    size: int
    digest: str
    platform: Platform | None = None
    annotations: dict[str, str] | None = None
    urls: list[str] | None = None

    @property
    def checked_digest(self) -> Digest:
        """The digest, which was checked when the document was read."""
        return Digest.parse(self.digest)


class Manifest(msgspec.Struct, frozen=True, rename="camel"):
    """An image for one platform: its configuration and its layers, the lowest first."""

    schema_version: int
    config: Descriptor
    layers: list[Descriptor]
    media_type: str | None = None
    annotations: dict[str, str] | None = None

    @property
    def size_bytes(self) -> int:
        """The size of the configuration and all layers, as they are transferred."""
        return self.config.size + sum(layer.size for layer in self.layers)


class Index(msgspec.Struct, frozen=True, rename="camel"):
    """The manifests of one image for several platforms."""

    schema_version: int
    manifests: list[Descriptor]
    media_type: str | None = None
    annotations: dict[str, str] | None = None


class RootFilesystem(msgspec.Struct, frozen=True):
    """The digests of an image's uncompressed layers, the lowest first."""

    type: str
    diff_ids: list[str]


class Execution(msgspec.Struct, frozen=True, rename="pascal"):
    """The part of a configuration that says how the image's command runs. `null` means absent."""

    user: str | None = None
    env: list[str] | None = None
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    working_dir: str | None = None
    stop_signal: str | None = None
    labels: dict[str, str] | None = None
    volumes: dict[str, Any] | None = None
    exposed_ports: dict[str, Any] | None = None
    healthcheck: dict[str, Any] | None = None
    """Docker's extension: kept, not run."""


class Config(msgspec.Struct, frozen=True):
    """An image's configuration."""

    architecture: str
    os: str
    rootfs: RootFilesystem
    config: Execution | None = None
    variant: str | None = None
    created: str | None = None
    author: str | None = None

    @property
    def platform(self) -> Platform:
        """The machine that the image is for."""
        return Platform(self.os, self.architecture, self.variant)


_ABSENT: Final = msgspec.Raw(b"")
_NULL: Final = (b"", b"null")


class _Head(msgspec.Struct, rename="camel"):
    """The members that tell which kind of document this is."""

    schema_version: int | None = None
    media_type: str | None = None
    manifests: msgspec.Raw = _ABSENT
    layers: msgspec.Raw = _ABSENT
    fs_layers: msgspec.Raw = _ABSENT


def read_manifest(content: bytes, *, media_type: str | None, name: str) -> Manifest | Index:
    """Read a manifest or an index. `media_type` is what it was announced as, `name` names it in errors.

    Raises `RegistryError` for a document that isn't valid, too large, or of a kind that ramet can't use.
    """
    if len(content) > MOST_MANIFEST_BYTES:
        raise RegistryError(
            f"the manifest of {name} has {len(content)} bytes, more than {MOST_MANIFEST_BYTES}"
        )
    head = _decoded(content, _Head, f"manifest of {name}")
    if head.schema_version == 1 or _is_there(head.fs_layers):
        raise RegistryError(
            f"the manifest of {name} has schema 1, which registries have given up in 2017",
            hint="push the image again with a current Docker, podman or skopeo",
        )
    if head.schema_version != 2:
        raise RegistryError(f"the manifest of {name} has schema {head.schema_version}; ramet reads schema 2")
    kind = head.media_type or _without_parameters(media_type)
    if _is_there(head.manifests) and _is_there(head.layers):
        # "Manifest confusion": two readers could take the one for the other (CVE-2021-41190).
        raise RegistryError(f"the manifest of {name} is an index and an image at once")
    if kind in INDEX_TYPES or (kind not in MANIFEST_TYPES and _is_there(head.manifests)):
        return _checked_index(_decoded(content, Index, f"index of {name}"), name)
    if kind in MANIFEST_TYPES or _is_there(head.layers):
        return _checked_manifest(_decoded(content, Manifest, f"manifest of {name}"), name)
    raise RegistryError(f"{name} is of the type {_shown(kind or 'unknown')}, and no image")


def read_config(content: bytes, *, manifest: Manifest, name: str) -> Config:
    """Read an image's configuration, whose layers must be as many as the manifest's.

    Raises `RegistryError` as `read_manifest`.
    """
    if len(content) > MOST_CONFIG_BYTES:
        raise RegistryError(f"the configuration of {name} has more than {MOST_CONFIG_BYTES} bytes")
    config = _decoded(content, Config, f"configuration of {name}")
    if config.rootfs.type != "layers":
        raise RegistryError(
            f"the configuration of {name} has a root of the type {_shown(config.rootfs.type)}"
        )
    if len(config.rootfs.diff_ids) != len(manifest.layers):
        raise RegistryError(
            f"the configuration of {name} has {len(config.rootfs.diff_ids)} layers,"
            f" its manifest {len(manifest.layers)}"
        )
    for diff_id in config.rootfs.diff_ids:
        _require_digest(diff_id, f"configuration of {name}")
    return config


def require_content(content: bytes, descriptor: Descriptor, *, name: str) -> None:
    """Raise `DamagedError` unless `content` has the descriptor's size and digest."""
    if len(content) != descriptor.size:
        raise DamagedError(f"{name} has {len(content)} bytes instead of {descriptor.size}")
    if not descriptor.checked_digest.matches(content):
        raise DamagedError(f"{name} isn't what its digest {descriptor.digest} names")


def _is_there(raw: msgspec.Raw) -> bool:
    return bytes(raw) not in _NULL


def _checked_index(index: Index, name: str) -> Index:
    if len(index.manifests) > MOST_INDEX_ENTRIES:
        raise RegistryError(
            f"the index of {name} has {len(index.manifests)} entries, more than {MOST_INDEX_ENTRIES}"
        )
    for entry in index.manifests:
        _require_sound(entry, f"index of {name}", most_bytes=MOST_MANIFEST_BYTES)
    return index


def _checked_manifest(manifest: Manifest, name: str) -> Manifest:
    what = f"manifest of {name}"
    if manifest.config.media_type not in CONFIG_TYPES:
        raise RegistryError(
            f"{name} is an artifact with a configuration of the type {_shown(manifest.config.media_type)},"
            " and no image"
        )
    _require_sound(manifest.config, what, most_bytes=MOST_CONFIG_BYTES)
    if not manifest.layers:
        raise RegistryError(f"{name} has no layers")
    if len(manifest.layers) > MOST_LAYERS:
        raise RegistryError(f"{name} has {len(manifest.layers)} layers, more than {MOST_LAYERS}")
    for number, layer in enumerate(manifest.layers, 1):
        if layer.media_type not in LAYER_COMPRESSIONS:
            why = next((why for part, why in _UNPACKABLE.items() if part in layer.media_type), None)
            raise RegistryError(
                f"layer {number} of {name} can't be unpacked:"
                f" {why or f'its type is {_shown(layer.media_type)}'}"
            )
        _require_sound(layer, what, most_bytes=MOST_LAYER_BYTES)
    return manifest


def _require_sound(descriptor: Descriptor, what: str, *, most_bytes: int) -> None:
    if not 0 <= descriptor.size <= most_bytes:
        raise RegistryError(
            f"the {what} has content of {descriptor.size} bytes; up to {most_bytes} are allowed"
        )
    _require_digest(descriptor.digest, what)


def _require_digest(text: str, what: str) -> None:
    try:
        Digest.parse(text)
    except UsageError as error:
        raise RegistryError(f"the {what} is malformed: {error.message}") from error


def _decoded(content: bytes, kind: type[D], what: str) -> D:
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if content.lstrip()[:1] == b"<":
            raise RegistryError(
                f"the {what} is HTML, and no JSON",
                hint="check the registry's name, and whether a proxy or a login page of the network answers",
            ) from error
        raise RegistryError(f"the {what} is malformed: {_shown(str(error))}") from error


def _without_parameters(media_type: str | None) -> str | None:
    return None if media_type is None else media_type.partition(";")[0].strip().lower()


def _shown(text: str) -> str:
    return printable(text[:_MOST_SHOWN].encode(errors="replace")).replace("\n", " ")
