"""The images and kernels that guests of this machine can boot."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from ramet.images.image import images_directory, load_image
from ramet.images.kernel import Kernel, add_kernel_package
from ramet.images.kernel import list_kernels as known_kernels
from ramet.images.kernel_gaps import gaps
from ramet.images.resolve import ALIASES, IMAGE_NAMES
from ramet.model.images import ImageEntry, ImageInspection, KernelEntry
from ramet.system import threads


async def list_images() -> list[ImageEntry]:
    """List the images in the cache, newest first, then the images that haven't been made yet.

    Raises `UnavailableError` when no path is known for the cache, `OSError` when the cache can't be read.
    """
    return await threads.run(_images)


async def inspect_image(name: str) -> ImageInspection:
    """Return everything about an image that ramet makes itself, by its name or its alias.

    Raises as `list_images`.
    """
    wanted = ALIASES.get(name, name)
    entry = next(entry for entry in await list_images() if entry.name == wanted)
    return ImageInspection(**msgspec.structs.asdict(entry), names=[entry.name])


async def list_kernels() -> list[KernelEntry]:
    """List the kernels for guests. New guests boot the first kernel.

    Raises `UnavailableError` when `RAMET_KERNEL` is set to something that is no kernel.
    """
    return await threads.run(lambda: [_kernel(kernel) for kernel in known_kernels()])


async def add_kernel(*packages: str | os.PathLike[str]) -> KernelEntry:
    """Add the kernel and the modules of a Debian package, or of several packages, to the cache.

    A version that is in the cache already stays as it is.
    Raises `UsageError` when there isn't exactly one kernel with modules, `DamagedError` for a broken package,
    `UnavailableError` when the kernel has no virtio, `OSError` for files. Nothing is added then.
    """
    return _kernel(await threads.run(add_kernel_package, *map(Path, packages)))


def _images() -> list[ImageEntry]:
    directory = images_directory()
    images = [load_image(entry) for entry in directory.iterdir()] if directory.is_dir() else []
    own = [image for image in images if image is not None and image.name in IMAGE_NAMES]
    made = sorted(own, key=lambda image: image.created_at, reverse=True)
    entries = [
        ImageEntry(
            name=image.name,
            key=image.key,
            kernel_version=image.kernel_version,
            kernel_bytes=image.kernel_bytes,
            initramfs_bytes=image.initramfs_bytes,
            created_at=image.created_at,
            directory=str(image.directory),
        )
        for image in made
    ]
    names = {image.name for image in made}
    return entries + [_not_made(name) for name in IMAGE_NAMES if name not in names]


def _not_made(name: str) -> ImageEntry:
    return ImageEntry(
        name=name,
        key=None,
        kernel_version=None,
        kernel_bytes=None,
        initramfs_bytes=None,
        created_at=None,
        directory=None,
    )


def _kernel(kernel: Kernel) -> KernelEntry:
    return KernelEntry(
        version=kernel.version,
        path=str(kernel.vmlinuz),
        source=kernel.source,
        modules=str(kernel.modules_dir) if kernel.modules_dir else None,
        lacks=gaps(kernel),
    )
