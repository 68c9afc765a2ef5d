"""Images in the OCI layout: a directory or an archive of one.

Sources: OCI image-spec 1.1, image-layout.md and annotations.md; containerd's annotation for whole names,
which Docker writes, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from ramet.errors import DamagedError, NotFoundError, RegistryError, UsageError
from ramet.images.library.names import canonical_name, platform_text
from ramet.images.library.obtain import image_config
from ramet.images.library.records import Layer, Material
from ramet.images.sources.files import Files, checked_chunks, read_document
from ramet.images.sources.found import Found
from ramet.oci.documents import (
    MOST_CONFIG_BYTES,
    MOST_MANIFEST_BYTES,
    Descriptor,
    Index,
    Manifest,
    Platform,
    read_config,
    read_manifest,
    require_content,
)
from ramet.oci.platforms import choose, require_fitting
from ramet.text import visible

INDEX: Final = "index.json"
MARKER: Final = "oci-layout"
_TAG: Final = "org.opencontainers.image.ref.name"
_NAME: Final = "io.containerd.image.name"
_MOST_NESTED: Final = 4
_MOST_LISTED: Final = 12


def read_layout(files: Files, *, label: str, ref: str | None, platform: Platform) -> Found:
    """Return the image of a layout that `ref` names, or its only one. `label` names the layout in errors.

    Raises `DamagedError`, `UsageError` when there are several to choose from, `NotFoundError` for a tag or a
    platform that isn't there.
    """
    with layout_errors():
        content = read_document(files, INDEX, label=label, most_bytes=MOST_MANIFEST_BYTES)
        index = read_manifest(content, media_type=None, name=label)
        if not isinstance(index, Index):
            raise DamagedError(f"the {INDEX} of {label} is no index")
        entries = _named(index.manifests, ref, label)
        name = next(filter(None, map(_whole_name, entries)), "")
        entry = choose(Index(2, entries), platform, name=label)
        document, nested = _document(files, entry, label), 0
        while isinstance(document, Index):
            nested += 1
            if nested > _MOST_NESTED:
                raise DamagedError(f"the indexes of {label} are nested too deep")
            entry = choose(document, platform, name=label)
            document = _document(files, entry, label)
        return Found(_material(files, entry, document, label, platform), name)


@contextmanager
def layout_errors() -> Iterator[None]:
    """Turn what documents raise for a registry into the error of a file."""
    try:
        yield
    except RegistryError as error:
        raise DamagedError(error.message, hint=error.hint) from error


def require_single(names: list[str], ref: str | None, label: str) -> None:
    """Raise `UsageError` if there are several names to choose from, `NotFoundError` if `ref` isn't there."""
    listed = ", ".join(visible(name[:200]) for name in names[:_MOST_LISTED])
    listed += ", …" if len(names) > _MOST_LISTED else ""
    if ref is not None:
        raise NotFoundError(
            f"{label} has no image {ref!r}: it has {listed or 'no names at all'}",
            hint="name one that it has" if names else "leave the tag out",
        )
    if len(names) > 1:
        raise UsageError(f"{label} has {len(names)} images: {listed}", hint="say which one: --ref NAME")


def _named(entries: list[Descriptor], ref: str | None, label: str) -> list[Descriptor]:
    if not entries:
        raise DamagedError(f"{label} has no image")
    names = sorted({name for entry in entries if (name := _shown_name(entry))})
    if ref is None:
        # Several names of one image are no choice.
        entries = list({entry.digest: entry for entry in reversed(entries)}.values())[::-1]
        if len(entries) > 1:
            require_single(names, None, label)
        return entries
    found = [entry for entry in entries if ref in _names(entry) or canonical_name(ref) in _names(entry)]
    if not found:
        require_single(names, ref, label)
    return list({entry.digest: entry for entry in found}.values())


def _names(entry: Descriptor) -> set[str]:
    annotations = entry.annotations or {}
    names = {annotations[key] for key in (_TAG, _NAME) if annotations.get(key)}
    return names | {canonical_name(name) for name in names} | {entry.digest}


def _shown_name(entry: Descriptor) -> str:
    annotations = entry.annotations or {}
    return annotations.get(_NAME) or annotations.get(_TAG) or ""


def _whole_name(entry: Descriptor) -> str:
    """Return the name that an entry gives its image; a tag alone is none."""
    name = _shown_name(entry)
    return name if ":" in name or "/" in name else ""


def _blob(descriptor: Descriptor) -> str:
    digest = descriptor.checked_digest
    return f"blobs/{digest.algorithm}/{digest.hexadecimal}"


def _document(files: Files, entry: Descriptor, label: str) -> Manifest | Index:
    content = read_document(files, _blob(entry), label=label, most_bytes=MOST_MANIFEST_BYTES)
    require_content(content, entry, name=f"the manifest of {label}")
    return read_manifest(content, media_type=entry.media_type, name=label)


def _material(
    files: Files, entry: Descriptor, manifest: Manifest, label: str, platform: Platform
) -> Material:
    content = read_document(files, _blob(manifest.config), label=label, most_bytes=MOST_CONFIG_BYTES)
    require_content(content, manifest.config, name=f"the configuration of {label}")
    config = read_config(content, manifest=manifest, name=label)
    require_fitting(config, platform, name=label)
    layers = [
        Layer(
            f"layer {number} of {label}",
            diff_id,
            checked_chunks(
                files,
                _blob(descriptor),
                digest=descriptor.digest,
                size_bytes=descriptor.size,
                label=label,
            ),
            descriptor.size,
            descriptor.digest,
        )
        for number, (descriptor, diff_id) in enumerate(
            zip(manifest.layers, config.rootfs.diff_ids, strict=True), 1
        )
    ]
    return Material(image_config(config), layers, entry.digest, label, platform_text(str(config.platform)))
