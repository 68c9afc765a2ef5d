"""pull, image: the images that guests boot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ramet.cli import calling, examples, output
from ramet.cli.completion import complete_container_images, complete_image
from ramet.cli.docker_words import Commands
from ramet.cli.options import Json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ramet.api.host import Host
    from ramet.model.images import ImageEntry

image = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Pull, import, list and remove images.",
)
_SHORT_DIGITS = 12

Image = Annotated[
    str,
    typer.Argument(
        metavar="IMAGE",
        autocompletion=complete_image,
        help="An image: its name, its digest, or 4 or more first digits of the digest.",
    ),
]


@image.command("pull", epilog=examples.epilog("image pull"))
def pull(
    reference: Annotated[
        str,
        typer.Argument(
            metavar="REFERENCE",
            autocompletion=complete_image,
            help="The image as Docker writes it: NAME[:TAG], or HOST[:PORT]/NAME[:TAG][@DIGEST].",
        ),
    ],
    platform: Annotated[
        str | None,
        typer.Option(metavar="P", help="OS/ARCHITECTURE[/VARIANT] instead of this machine's."),
    ] = None,
    prepare: Annotated[
        bool, typer.Option("--prepare", help="Boot it once now, so that the first `ramet run` is quick, too.")
    ] = False,
    json: Json = False,
) -> None:
    """Pull a container image from a registry.

    What the home has already isn't fetched again.
    """

    async def body(host: Host) -> None:
        from ramet.cli.progress import working

        with working(f"pulling {reference}", quiet=json):
            pulled = await host.pull(reference, platform=platform, prepare=prepare)
        if json:
            output.emit(pulled)
        else:
            output.say(f"{pulled.name}  {pulled.digest}")

    calling.with_host(body, json=json)


@image.command("import", epilog=examples.epilog("image import"))
def import_image(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="An OCI layout, an archive of `docker save`, a root filesystem as tar or directory;"
            " docker:NAME, podman:NAME; - is standard input.",
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The name of the image; that of SOURCE unless given."),
    ] = None,
    ref: Annotated[
        str | None, typer.Option(metavar="NAME", help="The name of one of several images in SOURCE.")
    ] = None,
    platform: Annotated[
        str | None, typer.Option(metavar="P", help="OS/ARCHITECTURE[/VARIANT] instead of this machine's.")
    ] = None,
    json: Json = False,
) -> None:
    """Import an image from an archive or a directory."""

    async def body(host: Host) -> None:
        from ramet.cli.progress import working

        with working(f"importing {source}", quiet=json):
            made = await host.import_image(source, name=name, ref=ref, platform=platform)
        for count, what in ((made.skipped_sockets, "sockets"), (made.skipped_mounts, "mounted filesystems")):
            if count:
                output.warn(f"ramet: {count} {what} in {output.clean(source)} aren't in the image")
        if json:
            output.emit(made)
        else:
            output.say(f"{made.name}  {made.digest}")

    calling.with_host(body, json=json)


@image.command("push", epilog=examples.epilog("image push"))
def push(
    reference: Image,
    target: Annotated[
        str, typer.Argument(metavar="REFERENCE", help="The name in the registry: HOST[:PORT]/NAME[:TAG].")
    ],
    json: Json = False,
) -> None:
    """Push an image to a registry.

    An image that was imported is packed as one layer.
    """

    async def body(host: Host) -> None:
        from ramet.cli.progress import working

        with working(f"pushing {target}", quiet=json):
            pushed = await host.push_image(reference, target)
        if pushed.squashed:
            output.warn(f"ramet: packed as one layer, with another digest: {pushed.squashed}")
        if json:
            output.emit(pushed)
        else:
            output.say(f"{pushed.reference}@{pushed.digest}")

    calling.with_host(body, json=json)


@image.command("ls", epilog=examples.epilog("image ls"))
def list_images(json: Json = False) -> None:
    """List images.

    Container images come first, then the images that ramet makes when they are first used. OWN is what a
    removal gives back; SHARED are files that other images have, too.
    """

    async def body(host: Host) -> None:
        entries = await host.images()
        if json:
            output.emit(entries)
        else:
            _show(entries)

    calling.with_host(body, json=json)


def _show(entries: Sequence[ImageEntry]) -> None:
    from ramet.cli import tables

    rows = [
        (
            "<none>" if entry.name == entry.digest else output.clean(entry.name),
            short_digest(entry),
            _bytes(_size(entry)),
            _bytes(entry.own_bytes),
            _bytes(entry.shared_bytes),
            tables.age_since(entry.created_at) if entry.created_at else "-",
        )
        for entry in entries
    ]
    tables.table(("NAME", "DIGEST", "SIZE", "OWN", "SHARED", "CREATED"), rows)


def short_digest(entry: ImageEntry) -> str:
    """Return the first digits of the digest of a container image, or the key of another."""
    if entry.digest is not None:
        return entry.digest.removeprefix("sha256:")[:_SHORT_DIGITS]
    return entry.key or "not made yet"


def _bytes(count: int | None) -> str:
    from ramet.units import format_bytes

    return "-" if count is None else format_bytes(count)


def _size(entry: ImageEntry) -> int | None:
    if entry.size_bytes is not None or entry.kernel_bytes is None:
        return entry.size_bytes
    return entry.kernel_bytes + (entry.initramfs_bytes or 0)


@image.command("inspect", epilog=examples.epilog("image inspect"))
def inspect(reference: Image, json: Json = False) -> None:
    """Show everything about an image."""

    async def body(host: Host) -> None:
        from ramet.cli import tables

        inspection = await host.image(reference)
        if json:
            output.emit(inspection)
        else:
            tables.fields(inspection)

    calling.with_host(body, json=json)


@image.command("rm", epilog=examples.epilog("image rm"))
def remove(
    wanted: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE...",
            autocompletion=complete_container_images,
            help="Images: names, digests, or 4 or more first digits of a digest.",
        ),
    ],
    force: Annotated[
        bool, typer.Option("--force", "-f", help="By a digest, remove an image that has several names.")
    ] = False,
    json: Json = False,
) -> None:
    """Remove names of images, and images without a name.

    Instances that were made from an image keep running: they have its files.
    """

    async def body(host: Host) -> int:
        from ramet.cli.progress import working
        from ramet.errors import PartlyFailedError, RametError
        from ramet.model.images import RemovedImages

        removed: list[str] = []
        failures: list[RametError] = []
        with working("removing", quiet=json):
            for reference in dict.fromkeys(wanted):
                try:
                    await host.remove_image(reference, force=force)
                except RametError as error:
                    failures.append(error)
                else:
                    removed.append(reference)
        if failures and not removed and len(failures) == 1:
            raise failures[0]
        for failure in failures:
            calling.tell(calling.error_shape(failure))
        if json:
            output.emit(RemovedImages(removed=removed))
        else:
            for reference in removed:
                output.say(reference)
        return PartlyFailedError.exit_code if failures else 0

    calling.with_host(body, json=json)


@image.command("prune", epilog=examples.epilog("image prune"))
def prune(json: Json = False) -> None:
    """Remove images without a name, and what no image needs.

    Downloads are removed, too. Instances keep the files that they use.
    """

    async def body(host: Host) -> None:
        from ramet.cli.progress import working
        from ramet.units import format_bytes

        with working("pruning", quiet=json):
            pruned = await host.prune_images()
        if json:
            output.emit(pruned)
        else:
            output.say(
                f"{_count(pruned.images, 'image')} and {_count(pruned.files, 'file')} removed,"
                f" {format_bytes(pruned.freed_bytes)} freed"
            )

    calling.with_host(body, json=json)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
