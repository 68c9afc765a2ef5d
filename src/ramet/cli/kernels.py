"""kernel: the kernels that guests boot."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ramet.cli import calling, examples, output
from ramet.cli.options import Json

kernel = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="List and add Linux kernels for guests."
)


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
                ("VERSION", "FROM", "PATH", "LACKS"),
                [
                    (entry.version, entry.source, entry.path, ", ".join(entry.lacks) or "-")
                    for entry in entries
                ],
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
