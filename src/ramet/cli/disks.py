"""disk: the disks of instances."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ramet.cli import calling, examples, output, references
from ramet.cli.options import Json, Reference

if TYPE_CHECKING:
    from ramet.api.host import Host
    from ramet.model.schema import ResizedDisk

disk = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Change the disks of instances.")


@disk.command("resize", epilog=examples.epilog("disk resize"))
def resize(
    reference: Reference,
    name: Annotated[
        str,
        typer.Argument(
            metavar="DISK", help="Its name: `disk`, `disk1` and on; or `root`.", show_default=False
        ),
    ],
    size: Annotated[
        str, typer.Argument(metavar="SIZE", help="The new size in all, such as 20G.", show_default=False)
    ],
    json: Json = False,
) -> None:
    """Make a disk larger.

    The instance may run or be stopped. A filesystem that ramet made on the disk grows at once, or at the next
    start of a stopped instance. A disk can't be made smaller.
    """

    async def body(host: Host) -> None:
        from ramet.cli.progress import working

        vm = await references.instance(host, reference)
        with working(f"resizing {name} of {vm.name}", quiet=json):
            resized = await vm.resize_disk(name, size)
        if json:
            output.emit(resized)
        else:
            output.say(_in_words(resized))

    calling.with_host(body, json=json)


def _in_words(resized: ResizedDisk) -> str:
    from ramet.units import format_bytes

    text = f"{resized.name}: the disk `{resized.disk}` has {format_bytes(resized.size_bytes)}"
    if resized.path is None:
        return text
    if resized.filesystem_bytes is None:
        return f"{text}; its filesystem grows at the next start"
    return f"{text}, its filesystem {format_bytes(resized.filesystem_bytes)}"
