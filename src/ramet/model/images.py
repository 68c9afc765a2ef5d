"""Images and kernels for guests, as `--json` prints them."""

from __future__ import annotations

from typing import Literal

import msgspec

from ramet.model.container import ImageConfig


class ImageEntry(msgspec.Struct, frozen=True, kw_only=True):
    """An image in the cache, or one that is made when it is first used (then its figures are null).

    A bare-metal guest has no initramfs: null.
    """

    name: str
    key: str | None
    kernel_version: str | None
    kernel_bytes: int | None
    initramfs_bytes: int | None
    created_at: str | None
    directory: str | None


class KernelEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A kernel for guests. The first of the list is the one that is used."""

    version: str
    path: str
    source: Literal["setting", "cache", "host"]
    modules: str | None
    """The directory of its modules, or null when it has built in all that it needs."""


class ContainerImageEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A container image of a home. `own_bytes` are on the disk for this image alone."""

    names: tuple[str, ...]
    """An image that is pruned next has none."""
    digest: str
    """Of its manifest; of an image without one, of its configuration and its layers."""
    platform: str
    """Such as `linux/amd64`; empty if nobody knows."""
    created_at: str
    """The time at which it was built here."""
    source: str
    is_local: bool
    """True if a name of it was given here: no registry is asked for that name."""
    own_bytes: int
    shared_bytes: int
    """Bytes of the layers that other images of this home have as well."""
    damage: str | None
    """Damage to its files, by their sizes and marks; null if there is none."""


class ContainerImageLayer(msgspec.Struct, frozen=True, kw_only=True):
    """A layer of an image, the lowest first. Small layers lie in the image's own file."""

    diff_id: str
    content_bytes: int
    """Of its files above one block, padded to blocks."""
    device: str | None
    """The device that has them, if the layer is shared."""


class ContainerImageDevice(msgspec.Struct, frozen=True, kw_only=True):
    """A read-only device of the image's guests: its own file first, then its shared layers."""

    name: str
    file: str
    size_bytes: int
    disk_bytes: int
    digest: str
    """SHA-256 of its content without the mark at its end."""
    images: int
    """The images of this home that have it."""


class ContainerImageDetails(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of a container image."""

    image: ContainerImageEntry
    config: ImageConfig
    layers: tuple[ContainerImageLayer, ...]
    devices: tuple[ContainerImageDevice, ...]
    inodes: int
    dropped_xattrs: int
    """Attributes that guests don't see: overlayfs would obey them, or EROFS can't hold them."""
    dropped_devices: int
    """Character devices 0:0, which overlayfs takes for removed files."""


class PrunedImages(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of what a prune of images removed."""

    images: int
    files: int
    """Devices, records of layers and downloads that no image needs."""
    freed_bytes: int
    """Without what instances still have links to."""
