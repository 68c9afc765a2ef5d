"""snapshot: create, ls, inspect, rm, verify, compress, decompress, export, import."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ramet.api.references import resolve
from ramet.cli import calling, examples, lifecycle, output, references
from ramet.cli.completion import (
    complete_compressible,
    complete_label,
    complete_level,
    complete_reference,
    complete_snapshot,
    complete_snapshot_label,
    complete_snapshots,
)
from ramet.cli.options import Json, Reference, pairs
from ramet.errors import DamagedError, FilesystemError, NotFoundError, UnreadableError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ramet.api.handles import Snapshot
    from ramet.api.host import Host
    from ramet.model.schema import Compression, SnapshotInfo, Verification

snapshot = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Create, check and move snapshots of instances."
)

_STREAM = "-"
_WHAT = "A snapshot: SOURCE/NAME, NAME if it is unique, its id, or 4 or more first digits of the id."

SnapshotReference = Annotated[
    str, typer.Argument(metavar="S", autocompletion=complete_snapshot, help=_WHAT, show_default=False)
]


@snapshot.command(epilog=examples.epilog("snapshot create"))
def create(
    reference: Reference,
    name: Annotated[
        str | None,
        typer.Option(metavar="S", help="The name of the snapshot; invented unless given."),
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(
            "--label", metavar="K=V", autocompletion=complete_label, help="Add a label. May be repeated."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Take a snapshot of an instance.

    The instance may be running, paused or in standby. A running instance is paused for milliseconds,
    and for longer if it was booted and not restored since.
    """

    async def body(host: Host) -> None:
        from ramet.cli.progress import working

        wanted = pairs(labels or [], what="label")
        vm = await references.instance(host, reference)
        with working(f"capturing {vm.name}", quiet=json):
            made = await vm.snapshot(name, labels=wanted)
        await _show(made, json=json)

    calling.with_host(body, json=json)


@snapshot.command("ls", epilog=examples.epilog("snapshot ls"))
def list_snapshots(
    reference: Annotated[
        str | None,
        typer.Argument(
            metavar="[REF]",
            autocompletion=complete_reference,
            help="List the snapshots of this instance, which may be removed.",
            show_default=False,
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print ids only.")] = False,
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            metavar="K=V",
            autocompletion=complete_snapshot_label,
            help="List snapshots with this label.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """List snapshots, oldest first."""

    async def body(host: Host) -> None:
        labels = pairs(filters or [], what="filter")
        shown = await _of(host, reference, labels)
        await references.warn_of_unreadable(host, "snapshot")
        if json:
            output.emit(shown)
        elif quiet:
            for snapshot in shown:
                output.say(snapshot.id)
        else:
            _table(shown)

    calling.with_host(body, json=json)


async def _of(host: Host, reference: str | None, labels: dict[str, str]) -> Sequence[SnapshotInfo]:
    """Return the snapshots of an instance, which may have been removed since."""
    if reference is None:
        return await host.snapshots(labels=labels)
    try:
        vm = await host.get(reference)
    except (NotFoundError, UnreadableError):
        if not await host.snapshots(reference):
            raise
        return await host.snapshots(reference, labels=labels)
    return await host.snapshots(vm.id, labels=labels)


def _table(snapshots: Sequence[SnapshotInfo]) -> None:
    from ramet.cli import tables
    from ramet.units import format_bytes

    headers = ("SOURCE", "NAME", "ID", "IMAGE", "MEMORY", "DELTA", "SIZE", "OWN", "FORKS", "AGE")
    rows = [
        (
            snapshot.source_name,
            snapshot.name,
            snapshot.id,
            snapshot.image,
            format_bytes(snapshot.memory_bytes),
            format_bytes(snapshot.delta_bytes) if snapshot.delta_bytes else "-",
            format_bytes(snapshot.allocated_bytes),
            format_bytes(snapshot.own_bytes),
            snapshot.forks,
            tables.age(snapshot),
        )
        for snapshot in snapshots
    ]
    tables.table(headers, rows)


@snapshot.command(epilog=examples.epilog("snapshot inspect"))
def inspect(reference: SnapshotReference, json: Json = False) -> None:
    """Show everything about a snapshot.

    That includes the machine it needs, its parts and their digests.
    """

    async def body(host: Host) -> None:
        from ramet.cli import tables

        snapshot = await references.snapshot(host, reference, instead="ramet inspect")
        inspection = await snapshot.inspect()
        if json:
            output.emit(inspection)
        else:
            tables.fields(inspection)

    calling.with_host(body, json=json)


@snapshot.command("rm", epilog=examples.epilog("snapshot rm"))
def remove(
    references_: Annotated[
        list[str],
        typer.Argument(
            metavar="S...",
            autocompletion=complete_snapshots,
            help="Snapshots: SOURCE/NAME, NAME if it is unique, or ids.",
            show_default=False,
        ),
    ],
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Remove records that can't be read, too.")
    ] = False,
    json: Json = False,
) -> None:
    """Remove snapshots.

    Forks of a removed snapshot keep running.
    """

    async def find(host: Host, reference: str) -> lifecycle.Removal:
        try:
            snapshot = await references.snapshot(host, reference, instead="ramet rm")
        except UnreadableError:
            if not force:
                raise lifecycle.forced(reference, "ramet snapshot rm") from None
            return lifecycle.Removal(reference, lambda: host.remove_unreadable(reference))

        async def remove_it() -> str:
            await snapshot.remove()
            return snapshot.id

        return lifecycle.Removal(snapshot.name, remove_it)

    async def body(host: Host) -> int:
        return await lifecycle.remove_each(host, references_, find, json=json)

    calling.with_host(body, json=json)


@snapshot.command(epilog=examples.epilog("snapshot verify"))
def verify(reference: SnapshotReference, json: Json = False) -> None:
    """Check every part of a snapshot against its digest.

    All parts are read. The exit code is 1 when a part is damaged.
    """

    async def body(host: Host) -> int:
        from ramet.cli.progress import working

        snapshot = await references.snapshot(host, reference, instead="ramet inspect")
        with working(f"checking {snapshot.name}", quiet=json):
            verification = await snapshot.verify()
        if json:
            output.emit(verification)
        else:
            _show_parts(verification)
        for part in verification.parts:
            if not part.ok:
                output.warn(f"ramet: {snapshot.name}: {part.name}: {part.problem}")
        if verification.ok:
            return 0
        output.warn(f"hint: {_next_step(snapshot.id, verification)}")
        return DamagedError.exit_code

    calling.with_host(body, json=json)


def _next_step(snapshot_id: str, verification: Verification) -> str:
    """Return a hint: of raw and compressed memory, the damaged file can be made anew from the other."""
    memory = [part for part in verification.parts if part.name.startswith("mem")]
    others_are_whole = all(part.ok for part in verification.parts if part not in memory)
    if others_are_whole and any(part.ok for part in memory):
        verb = (
            "compress" if any(part.ok and not part.name.endswith(".zst") for part in memory) else "decompress"
        )
        return f"`ramet snapshot {verb} {snapshot_id}` replaces the damaged file"
    return "existing forks aren't affected; take a new snapshot, or import an export of this one"


def _show_parts(verification: Verification) -> None:
    from ramet.cli import tables
    from ramet.units import format_bytes

    rows = [
        (part.name, format_bytes(part.size_bytes), "ok" if part.ok else "damaged")
        for part in verification.parts
    ]
    tables.table(("PART", "SIZE", "STATE"), rows)


Compressible = Annotated[
    str,
    typer.Argument(
        metavar="S",
        autocompletion=complete_compressible,
        help="A snapshot, or an instance that is a template or in standby.",
        show_default=False,
    ),
]


@snapshot.command(epilog=examples.epilog("snapshot compress"))
def compress(
    reference: Compressible,
    level: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            autocompletion=complete_level,
            help="1 (quick) to 19 (small); the level it has, or 3, unless given.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Compress the memory of a snapshot.

    S may also be a template or an instance in standby. The next fork decompresses the memory once, for all
    forks, and both files are kept. A second `compress` removes the raw file again; `decompress` removes the
    compressed file.
    """

    async def body(host: Host) -> None:
        from ramet.cli.progress import working

        target = await resolve(host, reference)
        with working(f"compressing {target.name}", quiet=json):
            _show_compression(await target.compress(level=level), json=json)

    calling.with_host(body, json=json)


@snapshot.command(epilog=examples.epilog("snapshot decompress"))
def decompress(reference: Compressible, json: Json = False) -> None:
    """Decompress the memory of a snapshot for good.

    S may also be a template or an instance in standby.
    """

    async def body(host: Host) -> None:
        from ramet.cli.progress import working

        target = await resolve(host, reference)
        with working(f"decompressing {target.name}", quiet=json):
            _show_compression(await target.decompress(), json=json)

    calling.with_host(body, json=json)


def _show_compression(done: Compression, *, json: bool) -> None:
    from ramet.units import format_bytes

    if json:
        output.emit(done)
    elif done.compressed_bytes is None:
        output.say(f"{done.name}: raw, {format_bytes(done.raw_bytes)}")
    else:
        output.say(
            f"{done.name}: {format_bytes(done.raw_bytes)} compressed to {format_bytes(done.compressed_bytes)}"
        )


@snapshot.command(epilog=examples.epilog("snapshot export"))
def export(
    reference: SnapshotReference,
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="A new file, or - for standard output, which must not be a terminal.",
            show_default=False,
        ),
    ],
    json: Json = False,
) -> None:
    """Write a snapshot to a file.

    Zeros take no space in the file. `ramet snapshot import` reads it, on this machine or another.
    """

    async def body(host: Host) -> None:
        from ramet.cli.progress import working

        if file == _STREAM and json:
            raise UsageError(
                "--json and the snapshot can't both go to standard output", hint="export it to a file"
            )
        if file == _STREAM and os.isatty(1):
            raise UsageError(
                "a snapshot isn't written to a terminal",
                hint=f"`ramet snapshot export {reference} - > FILE`, or into a pipe",
            )
        if not (directory := Path(file).absolute().parent).is_dir():
            raise FilesystemError(
                f"can't write {file}: there is no directory {directory}", hint="make it first"
            )
        snapshot = await references.snapshot(host, reference, instead="ramet snapshot create")
        with working(f"exporting {snapshot.name}", quiet=json):
            try:
                exported = await snapshot.export(_place(file))
            except FilesystemError as error:
                if file == _STREAM and error.number == errno.EPIPE:
                    raise BrokenPipeError from error
                raise
        if json:
            output.emit(exported)
        elif file != _STREAM:
            output.say_path(exported.file)

    calling.with_host(body, json=json)


@snapshot.command("import", epilog=examples.epilog("snapshot import"))
def import_(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="A file that `export` wrote, or - for standard input.", show_default=False
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option(metavar="S", help="The name of the snapshot; invented unless given."),
    ] = None,
    json: Json = False,
) -> None:
    """Make a snapshot from an exported file.

    The file is checked completely before it is used. If a snapshot with the same content exists, the result
    is that snapshot, or with --name a new snapshot that shares its files.
    """

    async def body(host: Host) -> None:
        from ramet.cli.progress import working

        if file == _STREAM and os.isatty(0):
            raise UsageError(
                "a snapshot isn't read from a terminal",
                hint="`ramet snapshot import - < FILE`, or from a pipe",
            )
        if file != _STREAM and not Path(file).exists():
            raise FilesystemError(
                f"there is no file {file}",
                hint="`ramet snapshot export S FILE` writes one; - is standard input",
            )
        with working(f"importing {'standard input' if file == _STREAM else Path(file).name}", quiet=json):
            made = await host.import_snapshot(_place(file), name=name)
        await _show(made, json=json)

    calling.with_host(body, json=json)


def _place(file: str) -> str:
    """Return the path for `file`. `./-` is a file, and must not be taken for the stream."""
    return str(Path.cwd() / file) if file != _STREAM and Path(file) == Path(_STREAM) else file


async def _show(made: Snapshot, *, json: bool) -> None:
    info = await made.info()
    if json:
        output.emit(info)
    else:
        output.say(f"{info.source_name}/{info.name}")
