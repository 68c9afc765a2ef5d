"""fork: make running copies of an instance or a snapshot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ramet.api.references import resolve
from ramet.cli import calling, output
from ramet.cli.options import Json, Source
from ramet.errors import PartlyFailedError, RametError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ramet.api.host import Host
    from ramet.model.schema import ForkFailure, ForkReport, Receipt


def fork(
    reference: Source,
    count: Annotated[int, typer.Option("--count", "-n", metavar="N", help="The number of forks.")] = 1,
    name: Annotated[
        str | None,
        typer.Option(metavar="X", help="The name of the fork. Several forks are named X-1, X-2 and so on."),
    ] = None,
    require_shared: Annotated[
        bool, typer.Option("--require-shared", help="Fail instead of copying memory or a disk.")
    ] = False,
    no_share: Annotated[
        bool, typer.Option("--no-share", help="Copy the memory instead of sharing it.")
    ] = False,
    timings: Annotated[
        bool, typer.Option("--timings", help="Show the time of each step, in ms. --json always has it.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print ids only.")] = False,
    json: Json = False,
) -> None:
    """Fork an instance or a snapshot.

    Each fork is a running copy with its own identity. A template, an instance in standby and a snapshot are
    forked as they are. A running instance is captured first (a branch), which pauses it for milliseconds.
    An instance that was booted is paused for longer, unless it went through `ramet standby` and
    `ramet restore`.
    """

    async def body(host: Host) -> int:
        from ramet.cli.progress import working

        if require_shared and no_share:
            raise UsageError("--require-shared and --no-share contradict each other", hint="use one of them")
        if timings and quiet:
            raise UsageError("--quiet prints ids only, no --timings", hint="use one of them")
        source = await resolve(host, reference)
        with working(f"forking {source.name}", quiet=json):
            report = await source.fork_report(
                count, name=name, require_shared=require_shared, share_memory=not no_share, detach=True
            )
        living = [fork for fork in report.forks if fork.ok]
        failures = [fork for fork in report.forks if not fork.ok]
        if json:
            output.emit(report)
        elif quiet:
            for receipt in living:
                output.say(receipt.id)
        elif living:
            show_receipts(living)
            if timings:
                show_timings(living)
            output.say(_summary(report, living, source.name))
        for failure in failures:
            calling.tell(failure.error, about=failure.name)
        return _exit_code(living, failures)

    calling.with_host(body, json=json)


def _exit_code(living: Sequence[Receipt], failures: Sequence[ForkFailure]) -> int:
    if not failures:
        return 0
    if living:
        return PartlyFailedError.exit_code
    codes = {calling.exit_code_of(failure.error.code) for failure in failures}
    return codes.pop() if len(codes) == 1 else RametError.exit_code


def show_receipts(receipts: Sequence[Receipt]) -> None:
    """Write a table with one row per fork."""
    from ramet.cli import tables
    from ramet.units import format_bytes

    with_delta = any(receipt.memory.delta_bytes for receipt in receipts)
    delta = ("DELTA",) if with_delta else ()
    headers = ("NAME", "ID", "HOSTNAME", "MEMORY", "LINKS", *delta, "OWN RAM", "PSS", "READY", "TOTAL")
    rows = [
        (
            receipt.name,
            receipt.id,
            receipt.identity.hostname,
            receipt.memory.mode,
            receipt.memory.links,
            *((format_bytes(receipt.memory.delta_bytes),) if with_delta else ()),
            format_bytes(receipt.memory.guest_private_bytes),
            format_bytes(receipt.memory.pss_bytes),
            f"{receipt.timings_ms.ready:.0f} ms",
            f"{receipt.timings_ms.total:.0f} ms",
        )
        for receipt in receipts
    ]
    tables.table(headers, rows)


def show_timings(receipts: Sequence[Receipt]) -> None:
    """Write the receipts' `timings_ms`, one row per fork, then the median and the maximum of each step."""
    import statistics

    from ramet.cli import tables
    from ramet.model.schema import Timings

    steps = [
        step
        for step in Timings.__struct_fields__
        if step != "decompress" or any(receipt.timings_ms.decompress for receipt in receipts)
    ]
    rows = [[receipt.name, *(getattr(receipt.timings_ms, step) for step in steps)] for receipt in receipts]
    if len(rows) > 1:
        columns = [*zip(*rows, strict=True)][1:]
        rows += [[f"({what.__name__})", *map(what, columns)] for what in (statistics.median, max)]
    shown = [[name, *(f"{took_ms:.3f}" for took_ms in took)] for name, *took in rows]
    tables.table(("TIMINGS IN MS", *(step.upper() for step in steps)), shown)


def _summary(report: ForkReport, living: Sequence[Receipt], source: str) -> str:
    from ramet.units import format_bytes

    words = "1 fork" if len(living) == 1 else f"{len(living)} forks"
    saved = f"{format_bytes(report.saved_bytes)} of memory shared instead of copied"
    paused_ms = max((receipt.timings_ms.pause for receipt in living), default=0.0)
    stood = f"; {source} was paused for {paused_ms:.1f} ms" if paused_ms else ""
    return f"{words} in {report.wall_ms:.0f} ms, {saved}{stood}"
