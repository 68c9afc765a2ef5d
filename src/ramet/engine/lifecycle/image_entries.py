"""Descriptions of a home's container images, with what each shares and who was made from it."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ramet.engine.context import Context
from ramet.engine.lifecycle.containers import is_built_in, library_of
from ramet.errors import NotFoundError, UsageError
from ramet.images.library.records import ContainerImage
from ramet.model.images import ImageEntry, ImageFile, ImageInspection, ImageLayer
from ramet.system.files import allocated_bytes


def get(context: Context, reference: str) -> ContainerImage:
    """Return the image that a name or a digest means. Raises `NotFoundError`, with what there is."""
    library = library_of(context)
    if (image := library.find(reference)) is not None:
        return image
    hint = library.near(reference) or f"`ramet image ls` lists images; `ramet pull {reference}` may get it"
    raise NotFoundError(f"there is no image {reference!r} in this home", hint=hint)


def entries(context: Context) -> list[ImageEntry]:
    """List the container images of a home, newest first, an entry per name."""
    found = library_of(context).images()
    users = _users([image for _, image in found])
    return [
        ImageEntry(**_facts(image, users, name))
        for names, image in found
        for name in _distinct([entry.name for entry in names]) or [image.digest]
    ]


def inspection(context: Context, image: ContainerImage) -> ImageInspection:
    """Return everything about an image of the library."""
    found = library_of(context).images()
    users = _users([other for _, other in found])
    names = next((names for names, other in found if other.digest == image.digest), [])
    record, config = image.record, image.config
    paths = [str(image.path_of(base)) for base in record.bases]
    lists: dict[str, Any] = {
        name: list(getattr(config, name)) for name in ("entrypoint", "cmd", "env", "exposed_ports", "volumes")
    }
    plain: dict[str, Any] = {
        name: getattr(config, name)
        for name in ("user", "working_dir", "stop_signal", "labels", "has_healthcheck")
    }
    return ImageInspection(
        **_facts(image, users, image.name),
        **lists,
        **plain,
        names=_distinct([entry.name for entry in names]),
        layers=[
            ImageLayer(
                diff_id=layer.diff_id,
                size_bytes=layer.size_bytes,
                file=None if layer.base is None else paths[layer.base],
            )
            for layer in record.layers
        ],
        files=[
            ImageFile(file=path, size_bytes=_size(image, number), images=users[base.digest])
            for number, (path, base) in enumerate(zip(paths, record.bases, strict=True))
        ],
        paths=record.inodes,
        dropped_xattrs=record.dropped_xattrs,
        dropped_devices=record.dropped_devices,
        instances=[row.name for row in context.store.all() if row.image_digest == image.digest],
    )


def require_in_library(image: str) -> None:
    """Raise `UsageError` for an image that ramet makes itself."""
    if is_built_in(image):
        raise UsageError(
            f"{image} is no container image: ramet makes it, in the cache, when it is used",
            hint="`ramet image ls` lists container images first",
        )


def _facts(image: ContainerImage, users: Counter[str], name: str) -> dict[str, Any]:
    sizes = {base.digest: _size(image, number) for number, base in enumerate(image.bases)}
    own = sum(size for digest, size in sizes.items() if users[digest] <= 1)
    return {
        "name": name,
        "key": None,
        "kernel_version": None,
        "kernel_bytes": None,
        "initramfs_bytes": None,
        "created_at": image.record.created_at,
        "directory": None,
        "kind": "container",
        "digest": image.digest,
        "platform": image.record.platform or None,
        "size_bytes": sum(sizes.values()),
        "own_bytes": own,
        "shared_bytes": sum(sizes.values()) - own,
        "source": image.record.source,
    }


def _users(images: list[ContainerImage]) -> Counter[str]:
    """Count the images that have each device, by its digest."""
    return Counter(digest for image in images for digest in {base.digest for base in image.bases})


def _size(image: ContainerImage, number: int) -> int:
    try:
        return allocated_bytes(image.path_of(image.bases[number]))
    except OSError:
        return 0  # missing: the image is damaged, and who uses it hears that


def _distinct(names: list[str]) -> list[str]:
    return list(dict.fromkeys(names))
