"""Images and kernels for guests, as `--json` prints them."""

from typing import Literal

import msgspec

from ramet.model.boot import BootSnapshot
from ramet.surface import exported


@exported
class ImageEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A name of an image: of a container image in the home, or of an image that ramet makes itself.

    An image that ramet makes when it is first used has no figures yet: null. A bare-metal guest has no
    initramfs. Of a container image, kernel, initramfs and directory are null; an image with several names
    has an entry for each.
    """

    name: str
    """The digest, if a container image has no name any more."""
    key: str | None
    kernel_version: str | None
    kernel_bytes: int | None
    initramfs_bytes: int | None
    created_at: str | None
    directory: str | None
    kind: Literal["container", "built-in"] = "built-in"
    digest: str | None = None
    """The identity of a container image, as its registry knows it: `sha256:…`; null for the others."""
    platform: str | None = None
    """The platform of a container image, such as `linux/amd64`; null if nobody knows."""
    size_bytes: int | None = None
    """The bytes of all its files on the disk."""
    own_bytes: int | None = None
    """The bytes of files that no other image of the home has: what a removal gives back."""
    shared_bytes: int | None = None
    """The bytes of files that other images of the home have, too."""
    source: str | None = None
    """Where a container image came from: a registry's reference, or the file that was imported."""


@exported
class ImageLayer(msgspec.Struct, frozen=True, kw_only=True):
    """A layer of a container image."""

    diff_id: str
    """The digest of the layer's archive, uncompressed."""
    size_bytes: int
    """The bytes of the contents of its files."""
    file: str | None
    """The file that has its contents, and that other images with this layer share; null: the image's own."""


@exported
class ImageFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file of a container image: a read-only device of its guests."""

    file: str
    """Absolute."""
    size_bytes: int
    images: int
    """The number of images in the home that have it."""


@exported
class ImageInspection(ImageEntry, frozen=True, kw_only=True):
    """Everything about an image. What only container images have is empty or null for the others."""

    names: list[str] = []
    """All its names."""
    entrypoint: list[str] = []
    cmd: list[str] = []
    env: list[str] = []
    user: str = ""
    working_dir: str = ""
    stop_signal: str = ""
    exposed_ports: list[str] = []
    volumes: list[str] = []
    labels: dict[str, str] = {}
    has_healthcheck: bool = False
    """True if it has a health check, which ramet shows and doesn't run."""
    layers: list[ImageLayer] = []
    """The lowest first."""
    files: list[ImageFile] = []
    """The image's own file, then those of its large layers."""
    paths: int | None = None
    """The number of files and directories in its tree."""
    dropped_xattrs: int = 0
    """Extended attributes that its guests don't see."""
    dropped_devices: int = 0
    """Character devices 0:0, which its guests don't see."""
    instances: list[str] = []
    """The names of the instances in the home that were made from it. They need none of its files here."""
    boot_snapshots: list[BootSnapshot] = []
    """Its guests that were booted once and are forked by `run`, the one that was used last first."""


class RemovedImages(msgspec.Struct, frozen=True, kw_only=True):
    """`image rm`: the references whose names, or images, are gone."""

    removed: list[str]


@exported
class ImportedImage(ImageInspection, frozen=True, kw_only=True):
    """`image import`: the image that was made."""

    skipped_sockets: int = 0
    """Sockets in a directory, which no image can have."""
    skipped_mounts: int = 0
    """Other filesystems below a directory, whose content isn't in the image."""


@exported
class PrunedImages(msgspec.Struct, frozen=True, kw_only=True):
    """`image prune`: counts of what was removed. Instances keep their files."""

    images: int
    """Images without a name."""
    files: int
    """Files that no image needs, and downloads."""
    freed_bytes: int
    boot_snapshots: int = 0
    """Boot snapshots of container images that aren't in the home any more."""


@exported
class PushedImage(msgspec.Struct, frozen=True, kw_only=True):
    """`image push`: an image that a registry has now."""

    name: str
    reference: str
    """The name that the registry has it by."""
    digest: str
    """The digest by which it can be pulled: `sha256:…`."""
    sent_bytes: int
    """The registry had the others."""
    size_bytes: int
    squashed: str | None
    """The reason why it was packed as one layer, with another digest; null for an image as it was pulled."""


class KernelEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A kernel for guests. The first of the list is the one that is used."""

    version: str
    path: str
    source: Literal["setting", "cache", "host"]
    modules: str | None
    """The directory of its modules, or null when it has built in all that it needs."""
    lacks: list[str]
    """The uses of a guest that the kernel doesn't support, such as `container images` or `VMGenID`."""
