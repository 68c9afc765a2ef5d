"""The records of container images: what an image is made of, and where its files are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from ramet.model.container import ImageConfig
from ramet.model.record import Base

FORMAT: Final = 1
"""Of an image's record. An image of another format is built again when it is next wanted."""


class Layer(NamedTuple):
    """A layer to build from. `open` gives its bytes, compressed or not, from the beginning each time."""

    name: str
    diff_id: str | None
    open: Callable[[], Iterable[bytes]]
    size_bytes: int = 0
    """The length of its bytes, 0 if it is unknown: for the progress."""
    blob: str | None = None
    """The digest of its bytes, if they were checked against it: a layer that the library has isn't opened."""


class Material(NamedTuple):
    """The content of an image that is to be built.

    `digest` is its identity (`sha256:…`); None: it is made of configuration and layers. `source` says in
    words where it came from; `platform` is `OS/ARCHITECTURE[/VARIANT]`, empty if nobody knows.
    """

    config: ImageConfig
    layers: Sequence[Layer]
    digest: str | None
    source: str
    platform: str = ""


class LayerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A layer of a built image, the lowest first. `base` is the number of the device with its pages."""

    diff_id: str
    size_bytes: int
    base: int | None = None


class ImageRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The content of an image's file in `manifests/`."""

    format: int
    digest: str
    config: ImageConfig
    layers: tuple[LayerRecord, ...]
    bases: tuple[Base, ...]
    source: str
    platform: str = ""
    created_at: str
    inodes: int
    dropped_xattrs: int = 0
    """Attributes that the guest doesn't see: overlayfs would obey them, or EROFS can't hold them."""
    dropped_devices: int = 0
    """Character devices 0:0, which overlayfs takes for whiteouts."""


class LayerNote(msgspec.Struct, frozen=True, kw_only=True):
    """The content of a layer's file in `layers/`: the blob with its pages, and the rest of it beside this.

    `blobs` are digests of archives that were seen to be this layer. `entries_digest` and `small_digest` are
    of the files with its entries and its small files, so that the layer is used again without its archive.
    """

    format: int
    diff_id: str
    base: Base
    blobs: tuple[str, ...]
    entries_digest: str
    small_digest: str


class NameRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The content of a name's file in `names/`.

    `is_local` says that the name was given here: no registry is asked for it. A name that a registry gave
    is one per `platform`; `index_digest` is that of what the tag named there, all platforms together.
    """

    name: str
    digest: str
    is_local: bool
    updated_at: str
    platform: str = ""
    index_digest: str = ""


class ContainerImage(msgspec.Struct, frozen=True, kw_only=True):
    """An image in the library, with the name that it was found by (or its digest).

    Its devices are its own file, then the blobs of its shared layers, in the order of the mount.
    """

    name: str
    record: ImageRecord
    blobs: Path
    """The directory of the devices' files, each named by its digest."""

    @property
    def digest(self) -> str:
        """The image's identity: `sha256:` and 64 hex digits."""
        return self.record.digest

    @property
    def config(self) -> ImageConfig:
        """The configuration that guests are run by."""
        return self.record.config

    @property
    def bases(self) -> tuple[Base, ...]:
        """The devices of the image's guests."""
        return self.record.bases

    def path_of(self, base: Base) -> Path:
        """Return the file of a device."""
        return self.blobs / blob_name(base.digest)


def blob_name(digest: str) -> str:
    """Return the name of the file of a device whose blocks have that digest."""
    return f"{digest}.erofs"
