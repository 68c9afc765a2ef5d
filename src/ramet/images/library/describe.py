"""The library as `--json` prints it: what each image is, and what it costs the disk."""

from __future__ import annotations

from collections import Counter

from ramet.images.erofs.blob import BLOCK_BYTES
from ramet.images.library.library import Library
from ramet.images.library.records import ContainerImage, NameRecord
from ramet.model.images import (
    ContainerImageDetails,
    ContainerImageDevice,
    ContainerImageEntry,
    ContainerImageLayer,
)
from ramet.system.files import allocated_bytes


def entries(library: Library) -> list[ContainerImageEntry]:
    """List all images, newest first. Blocks: files are looked at."""
    images = library.images()
    sharing = _sharing([image for _, image in images])
    return [_entry(library, names, image, sharing) for names, image in images]


def details(library: Library, reference: str, *, platform: str = "") -> ContainerImageDetails:
    """Return all that is known of an image. Blocks. Raises as `Library.get`."""
    image = library.get(reference, platform=platform)
    images = library.images()
    sharing = _sharing([other for _, other in images])
    names = next((names for names, other in images if other.digest == image.digest), [])
    record = image.record
    return ContainerImageDetails(
        image=_entry(library, names, image, sharing),
        config=record.config,
        layers=tuple(
            ContainerImageLayer(
                diff_id=layer.diff_id,
                content_bytes=layer.size_bytes,
                device=None if layer.base is None else record.bases[layer.base].name,
            )
            for layer in record.layers
        ),
        devices=tuple(
            ContainerImageDevice(
                name=base.name,
                file=str(image.path_of(base)),
                size_bytes=(base.blocks + 1) * BLOCK_BYTES,
                disk_bytes=_disk_bytes(image, base.digest),
                digest=base.digest,
                images=sharing[base.digest],
            )
            for base in record.bases
        ),
        inodes=record.inodes,
        dropped_xattrs=record.dropped_xattrs,
        dropped_devices=record.dropped_devices,
    )


def _entry(
    library: Library, names: list[NameRecord], image: ContainerImage, sharing: Counter[str]
) -> ContainerImageEntry:
    digests = {base.digest for base in image.bases}
    own = {digest for digest in digests if sharing[digest] < 2}
    record = image.record
    return ContainerImageEntry(
        names=tuple(dict.fromkeys(entry.name for entry in names)),
        digest=record.digest,
        platform=record.platform,
        created_at=record.created_at,
        source=record.source,
        is_local=any(entry.is_local for entry in names),
        own_bytes=sum(_disk_bytes(image, digest) for digest in own),
        shared_bytes=sum(_disk_bytes(image, digest) for digest in digests - own),
        damage=next(iter(library.damage(image)), None),
    )


def _sharing(images: list[ContainerImage]) -> Counter[str]:
    """Count the images that have each device."""
    return Counter(digest for image in images for digest in {base.digest for base in image.bases})


def _disk_bytes(image: ContainerImage, digest: str) -> int:
    for base in image.bases:
        if base.digest == digest:
            try:
                return allocated_bytes(image.path_of(base))
            except OSError:
                return 0  # the entry says that it is missing
    return 0
