"""Images in the archives of `docker save` and `podman save` that have a `manifest.json` and no layout.

Source: Docker's image specification 1.2, "Combined Image JSON + Filesystem Changeset Format"; moby,
`image/tarexport`. Nothing names the digests of its layers: they are compared with the diff ids of the
configuration, and the configuration with its name, which is the image's identity.
"""

from __future__ import annotations

import hashlib
import re
from functools import partial
from typing import Final

import msgspec

from ramet.errors import DamagedError
from ramet.images.library.names import canonical_name, platform_text
from ramet.images.library.obtain import image_config
from ramet.images.library.records import Layer, Material
from ramet.images.sources.files import Files, read_document
from ramet.images.sources.found import Found
from ramet.images.sources.oci_layout import layout_errors, require_single
from ramet.oci.documents import (
    MOST_CONFIG_BYTES,
    MOST_LAYERS,
    MOST_MANIFEST_BYTES,
    Descriptor,
    Manifest,
    Platform,
    read_config,
)
from ramet.oci.platforms import require_fitting
from ramet.text import visible

MANIFEST: Final = "manifest.json"
_CONFIG_NAME: Final = re.compile(r"(?:blobs/sha256/)?([0-9a-f]{64})(?:\.json)?")
_UNKNOWN: Final = "sha256:" + "0" * 64


class _Image(msgspec.Struct, frozen=True, rename="pascal"):
    """An image of `manifest.json`."""

    config: str
    layers: list[str]
    repo_tags: list[str] | None = None

    @property
    def names(self) -> list[str]:
        """The image's names; without any, its digest."""
        digits = _CONFIG_NAME.fullmatch(self.config)
        return self.repo_tags or ([digits[1][:12]] if digits else [self.config])


def read_archive(files: Files, *, label: str, ref: str | None, platform: Platform) -> Found:
    """Return the image of an archive that `ref` names, or its only one. `label` names the archive in errors.

    Raises `DamagedError`, `UsageError` when there are several to choose from, `NotFoundError`.
    """
    content = read_document(files, MANIFEST, label=label, most_bytes=MOST_MANIFEST_BYTES)
    try:
        images = msgspec.json.decode(content, type=list[_Image])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DamagedError(f"the {MANIFEST} of {label} is malformed: {visible(str(error)[:200])}") from error
    if not images:
        raise DamagedError(f"{label} has no image")
    image = _chosen(images, ref, label)
    with layout_errors():
        return Found(_material(files, image, label, platform), (image.repo_tags or [""])[0])


def _chosen(images: list[_Image], ref: str | None, label: str) -> _Image:
    if ref is None:
        if len(images) > 1:
            require_single([name for image in images for name in image.names], None, label)
        return images[0]
    for image in images:
        if any(ref == name or canonical_name(ref) == canonical_name(name) for name in image.names):
            return image
        digits = _CONFIG_NAME.fullmatch(image.config)
        if digits and ref.removeprefix("sha256:") in (digits[1], digits[1][:12]):
            return image
    require_single([name for image in images for name in image.names], ref, label)
    raise AssertionError("it raises for a name that isn't there")


def _material(files: Files, image: _Image, label: str, platform: Platform) -> Material:
    if not 1 <= len(image.layers) <= MOST_LAYERS:
        raise DamagedError(f"{label} has {len(image.layers)} layers, where 1 to {MOST_LAYERS} are expected")
    content = read_document(files, image.config, label=label, most_bytes=MOST_CONFIG_BYTES)
    digest = hashlib.sha256(content).hexdigest()
    if (named := _CONFIG_NAME.fullmatch(image.config)) and named[1] != digest:
        raise DamagedError(f"the configuration of {label} isn't what its name {image.config} says")
    sizes = [files.size(name) for name in image.layers]
    for name, size in zip(image.layers, sizes, strict=True):
        if size is None:
            raise DamagedError(f"{label} has no {visible(name[:200])}, which it should have")
    # A manifest as such an archive would have it, for the checks that all images' configurations get.
    unknown = Descriptor("", 0, _UNKNOWN)
    config = read_config(content, manifest=Manifest(2, unknown, [unknown] * len(image.layers)), name=label)
    require_fitting(config, platform, name=label)
    layers = [
        Layer(f"layer {number} of {label}", diff_id, partial(files.chunks, name), size or 0)
        for number, (diff_id, name, size) in enumerate(
            zip(config.rootfs.diff_ids, image.layers, sizes, strict=True), 1
        )
    ]
    return Material(
        image_config(config), layers, f"sha256:{digest}", label, platform_text(str(config.platform))
    )
