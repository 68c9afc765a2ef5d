"""The records of container images: what an image is made of, and where its files are."""

from __future__ import annotations

from pathlib import Path

import msgspec

from ramet.model.container import ImageConfig
from ramet.model.record import Base


class ContainerImage(msgspec.Struct, frozen=True, kw_only=True):
    """An image in the library, by the name that it was found by.

    `digest` is the manifest's (`sha256:…`), which is the image's identity. `bases` are the devices of its
    guests: its own file, then the blobs of its shared layers, in the order of the mount.
    """

    name: str
    digest: str
    config: ImageConfig
    bases: tuple[Base, ...]
    blobs: Path
    """The directory of the devices' files, each named by its digest."""

    def path_of(self, base: Base) -> Path:
        """Return the file of a device."""
        return self.blobs / f"{base.digest}.erofs"
