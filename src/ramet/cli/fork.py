"""fork: running copies of an instance or a snapshot."""

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
    count: Annotated[int, typer.Option("--count", "-n", metavar="N", help="How many.")] = 1,
    name: Annotated[
        str | None, typer.Option(metavar="X", help="The fork's name; of several X-1, X-2 and so on.")
    ] = None,
    require_shared: Annotated[
        bool, typer.Option("--require-shared", help="Fail rather than copy memory or a disk.")
    ] = False,
    no_share: Annotated[bool, typer.Option("--no-share", help="Copy memory on purpose.")] = False,
    timings: Annotated[
        bool, typer.Option("--timings", help="Show where the time went, in ms. With --json it always is.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print ids only.")] = False,
    json: Json = False,
) -> None:
    """Make running copies of an instance or a snapshot, each with an identity of its own.

    A template, an instance in standby and a snapshot are forked as they are. An instance that runs is
    captured first (a branch): it is paused for a few milliseconds.
    """

    async def body(host: Host) -> int:
        if require_shared and no_share:
            raise UsageError("--require-shared and --no-share contradict each other", hint="use one of them")
        if timings and quiet:
            raise UsageError("--quiet prints ids only, no --timings", hint="use one of them")
        source = await resolve(host, reference)
        with output.working(f"forking {source.name}", quiet=json):
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
        else:
            show_receipts(living)
            if timings and living:
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
    """A table, a fork a row."""
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
    output.table(headers, rows)


def show_timings(receipts: Sequence[Receipt]) -> None:
    """The receipts' `timings_ms`, a fork a row; for several also the median and the largest of each step."""
    import statistics

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
    output.table(("TIMINGS IN MS", *(step.upper() for step in steps)), shown)


def _summary(report: ForkReport, living: Sequence[Receipt], source: str) -> str:
    from ramet.units import format_bytes

    words = "1 fork" if len(living) == 1 else f"{len(living)} forks"
    saved = f"{format_bytes(report.saved_bytes)} of memory shared instead of copied"
    paused_ms = max((receipt.timings_ms.pause for receipt in living), default=0.0)
    stood = f"; {source} was paused for {paused_ms:.1f} ms" if paused_ms else ""
    return f"{words} in {report.wall_ms:.0f} ms, {saved}{stood}"
