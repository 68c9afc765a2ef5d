"""image, kernel: the images and kernels that guests boot."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ramet.cli import calling, examples, output
from ramet.cli.options import Json

if TYPE_CHECKING:
    from ramet.model.images import ImageEntry

image = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="List the images that guests boot.")
kernel = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="List and add Linux kernels for guests."
)


@image.command("ls", epilog=examples.epilog("image ls"))
def list_images(json: Json = False) -> None:
    """List images.

    ramet makes an image when the image is first used.
    """

    async def body() -> None:
        from ramet.api import images
        from ramet.cli import tables

        entries = await images.list_images()
        if json:
            output.emit(entries)
            return
        tables.table(
            ("NAME", "KEY", "KERNEL", "SIZE", "CREATED"),
            [
                (
                    entry.name,
                    entry.key or "not made yet",
                    entry.kernel_version or "-",
                    _size(entry),
                    entry.created_at or "-",
                )
                for entry in entries
            ],
        )

    calling.call(body, json=json)


def _size(entry: ImageEntry) -> str:
    from ramet.units import format_bytes

    if entry.kernel_bytes is None:
        return "-"
    return format_bytes(entry.kernel_bytes + (entry.initramfs_bytes or 0))


@kernel.command("ls", epilog=examples.epilog("kernel ls"))
def list_kernels(json: Json = False) -> None:
    """List the kernels for guests.

    New guests boot the first kernel of the list.
    """

    async def body() -> None:
        from ramet.api import images
        from ramet.cli import tables

        entries = await images.list_kernels()
        if json:
            output.emit(entries)
        else:
            tables.table(
                ("VERSION", "FROM", "PATH"), [(entry.version, entry.source, entry.path) for entry in entries]
            )

    calling.call(body, json=json)


@kernel.command("add", epilog=examples.epilog("kernel add"))
def add_kernel(
    packages: Annotated[
        list[Path],
        typer.Argument(
            metavar="PACKAGE.deb...", help="A Debian kernel package, or several packages of one kernel."
        ),
    ],
    json: Json = False,
) -> None:
    """Add a kernel and its modules from Debian packages."""

    async def body() -> None:
        from ramet.api import images
        from ramet.cli.progress import working

        with working("adding the kernel", quiet=json):
            added = await images.add_kernel(*packages)
        if json:
            output.emit(added)
        else:
            output.say(added.version)

    calling.call(body, json=json)
