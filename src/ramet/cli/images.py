"""image and kernel: what there is to boot."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ramet.cli import calling, output
from ramet.cli.options import Json

if TYPE_CHECKING:
    from ramet.images.kernel import Kernel
    from ramet.model.images import ImageEntry, KernelEntry

image = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="What there is to boot.")
kernel = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Linux kernels for guests.")


@image.command("ls")
def list_images(json: Json = False) -> None:
    """List images. One that ramet makes itself is made when it is first used."""

    async def body() -> None:
        entries = _images()
        if json:
            output.emit(entries)
            return
        output.table(
            ("NAME", "KEY", "KERNEL", "SIZE", "CREATED"),
            [
                (
                    one.name,
                    one.key or "not made yet",
                    one.kernel_version or "-",
                    _size(one),
                    one.created_at or "-",
                )
                for one in entries
            ],
        )

    calling.call(body, json=json)


def _images() -> list[ImageEntry]:
    """The images in the cache, newest first; then those that can be made and never were."""
    from ramet.images.image import images_directory, load_image
    from ramet.images.resolve import IMAGE_NAMES
    from ramet.model.images import ImageEntry

    directory = images_directory()
    found = [load_image(entry) for entry in directory.iterdir()] if directory.is_dir() else []
    made = sorted(filter(None, found), key=lambda one: one.created_at, reverse=True)
    entries = [
        ImageEntry(
            name=one.name,
            key=one.key,
            kernel_version=one.kernel_version,
            kernel_bytes=one.kernel_bytes,
            initramfs_bytes=one.initramfs_bytes,
            created_at=one.created_at,
            directory=str(one.directory),
        )
        for one in made
    ]
    return entries + [
        ImageEntry(
            name=name,
            key=None,
            kernel_version=None,
            kernel_bytes=None,
            initramfs_bytes=None,
            created_at=None,
            directory=None,
        )
        for name in IMAGE_NAMES
        if name not in {one.name for one in made}
    ]


def _size(entry: ImageEntry) -> str:
    from ramet.units import format_bytes

    if entry.kernel_bytes is None:
        return "-"
    return format_bytes(entry.kernel_bytes + (entry.initramfs_bytes or 0))


@kernel.command("ls")
def list_kernels(json: Json = False) -> None:
    """List kernels for guests; the first one is used."""

    async def body() -> None:
        from ramet.images.kernel import list_kernels as found

        entries = [_entry(one) for one in found()]
        if json:
            output.emit(entries)
        else:
            output.table(
                ("VERSION", "FROM", "PATH"), [(one.version, one.source, one.path) for one in entries]
            )

    calling.call(body, json=json)


@kernel.command("add")
def add_kernel(
    packages: Annotated[
        list[Path],
        typer.Argument(
            metavar="PACKAGE.deb...", help="A Debian kernel package, or several that belong together."
        ),
    ],
    json: Json = False,
) -> None:
    """Take a kernel and its modules out of Debian packages."""

    async def body() -> None:
        from ramet.images.kernel import add_kernel_package

        added = _entry(add_kernel_package(*packages))
        if json:
            output.emit(added)
        else:
            output.say(added.version)

    calling.call(body, json=json)


def _entry(found: Kernel) -> KernelEntry:
    from ramet.model.images import KernelEntry

    return KernelEntry(
        version=found.version,
        path=str(found.vmlinuz),
        source=found.source,
        modules=str(found.modules_dir) if found.modules_dir else None,
    )
