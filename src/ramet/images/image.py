"""An image in the cache: a kernel, an initramfs and `image.json`, in a directory that never changes."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

import msgspec

from ramet import config

MANIFEST: Final = "image.json"


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What `image.json` says. Its file names are relative, so that a cache can be moved.

    `pvh` tells whether QEMU's `-kernel` enters the kernel directly; if not, `kernel_note` says why.
    """

    name: str
    key: str
    kernel_file: Literal["vmlinux", "vmlinuz"]
    kernel_version: str
    kernel_bytes: int
    kernel_digest: str
    kernel_note: str | None
    pvh: bool
    initramfs_bytes: int
    initramfs_digest: str
    agent_digest: str
    created_at: str
    guest: Literal["linux", "bare-metal"] = "linux"
    disk_bytes: int = 0


class Image(Manifest, frozen=True, kw_only=True):
    """A manifest and where its files are.

    Digests are SHA-256, in hexadecimal; `created_at` is RFC 3339, UTC.
    """

    directory: Path

    @property
    def kernel(self) -> Path:
        """The kernel to boot: an ELF `vmlinux`, or the bzImage `vmlinuz` when there was no getting it out."""
        return self.directory / self.kernel_file

    @property
    def initramfs(self) -> Path | None:
        """The initial RAM filesystem, a newc archive, or None when the image has none."""
        return self.directory / "initramfs" if self.initramfs_bytes else None


def images_directory() -> Path:
    """Where images are kept: `<cache>/images`."""
    return config.cache_directory() / "images"


def load_image(directory: Path) -> Image | None:
    """The image in `directory`, or None when a part of it is missing or has another size than it should.

    Costs two stats and one small read; digests were taken when it was made and aren't checked here.
    """
    try:
        manifest = msgspec.json.decode((directory / MANIFEST).read_bytes(), type=Manifest)
        image = Image(**msgspec.structs.asdict(manifest), directory=directory)
        whole = image.kernel.stat().st_size == image.kernel_bytes and (
            image.initramfs is None or image.initramfs.stat().st_size == image.initramfs_bytes
        )
    except (OSError, msgspec.MsgspecError):
        return None
    return image if whole else None
