"""An image in the cache: its parts and `image.json`, in a directory that never changes."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

import msgspec

from ramet import config
from ramet.errors import DamagedError
from ramet.images.publish import published_directory, withdraw
from ramet.model.record import Guest

MANIFEST: Final = "image.json"


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The content of `image.json`. Its file names are relative, so that a cache can be moved.

    `pvh` tells whether QEMU's `-kernel` enters the kernel directly; if not, `kernel_note` says why. A `linux`
    guest has an initramfs. A `bare-metal` guest is its kernel alone, which Firecracker enters in 64-bit mode,
    and which needs no KVM that runs Linux. `disk_bytes` is the size of the empty data disk that an instance
    gets, 0 for none. `generation_id` tells whether the kernel has a driver for VMGenID.
    """

    name: str
    key: str
    kernel_file: Literal["vmlinux", "vmlinuz"]
    kernel_version: str
    kernel_bytes: int
    kernel_digest: str
    kernel_note: str | None
    pvh: bool
    initramfs_bytes: int | None
    initramfs_digest: str | None
    agent_digest: str
    created_at: str
    guest: Guest = "linux"
    disk_bytes: int = 0
    generation_id: bool = False


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
        """The initial RAM filesystem, a newc archive; None for a guest that has none."""
        return None if self.initramfs_bytes is None else self.directory / "initramfs"


def images_directory() -> Path:
    """Return the directory of images, `<cache>/images`."""
    return config.cache_directory() / "images"


def load_image(directory: Path) -> Image | None:
    """Load the image in `directory`; None when a part of it is missing or has the wrong size.

    Costs a stat of each part and one small read; digests were taken when the image was made and aren't
    checked here.
    """
    try:
        manifest = msgspec.json.decode((directory / MANIFEST).read_bytes(), type=Manifest)
        image = Image(**msgspec.structs.asdict(manifest), directory=directory)
        whole = image.kernel.stat().st_size == image.kernel_bytes and (
            image.initramfs is None or image.initramfs.stat().st_size == image.initramfs_bytes
        )
    except (OSError, msgspec.MsgspecError, RecursionError):
        return None
    return image if whole else None


def publish_image(manifest: Manifest, parts: Mapping[str, bytes]) -> Image:
    """Put an image into the cache unless the cache has it. `parts` are contents by file name.

    A damaged image is replaced. Raises `OSError` for the cache, `DamagedError` when what was written isn't
    whole; no half image is left then.
    """
    target = images_directory() / f"{manifest.name}-{manifest.key}"
    # In this order: a directory appears whole, so that one which is there and isn't whole was damaged later.
    if target.is_dir() and load_image(target) is None:
        withdraw(target)
    with published_directory(target) as making:
        for name, content in parts.items():
            (making / name).write_bytes(content)
        (making / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")
    if image := load_image(target):
        return image
    raise DamagedError(f"the image just made in {target} is not whole", hint="is its disk full or failing?")


def made_now() -> str:
    """Return the present time for a manifest's `created_at`."""
    return datetime.now(UTC).isoformat(timespec="seconds")
