"""serve, pool: VMMs that are ready for forks, kept by a process in the foreground."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ramet.cli import calling, output
from ramet.cli.options import Json

if TYPE_CHECKING:
    from ramet.api.host import Host
    from ramet.model.schema import PoolReport

_DEFAULT_WARM = 8
_IDLE_WAIT_S = 60.0


def serve(
    warm: Annotated[
        int, typer.Option("--warm", metavar="N", min=1, help="The largest number of VMMs to keep ready.")
    ] = _DEFAULT_WARM,
    json: Json = False,
) -> None:
    """Keep VMMs ready for forks, until Ctrl-C or SIGTERM.

    Each VMM holds a loaded guest of a source that was forked recently, so a fork has nothing to start or to
    load. Every ramet process in this home uses the VMMs. When this command ends, the unused VMMs end, and the
    forks keep running.
    """

    async def body(host: Host) -> None:
        import anyio

        from ramet.cli.progress import working

        _tell_of_trouble()
        with working("preparing VMMs", quiet=json):
            report = await host.pool(wait=_IDLE_WAIT_S)
        if json:
            output.emit(report)
        else:
            ready = sum(entry.state == "ready" for entry in report.entries)
            output.say(f"ready: {ready} of at most {warm} VMMs are warm in {host.home}; Ctrl-C ends them")
        await anyio.sleep_forever()

    calling.with_host(body, json=json, warm=warm, serves=True)


def _tell_of_trouble() -> None:
    """Write the log of the pool controller to standard error."""
    import logging

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            output.warn(f"ramet: {record.getMessage()}")

    logger = logging.getLogger("ramet.pool")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(Lines())


def pool(json: Json = False) -> None:
    """List the VMMs that are ready for forks.

    The list names the process that keeps each VMM: `ramet serve`, or a Python program with
    `ramet.Host(warm=N)`.
    """

    async def body(host: Host) -> None:
        report = await host.pool()
        if json:
            output.emit(report)
        else:
            _show(report)

    calling.with_host(body, json=json)


def _show(report: PoolReport) -> None:
    from ramet.cli import tables
    from ramet.units import format_bytes

    rows = [
        (
            entry.id,
            entry.driver or "-",
            entry.warm or "-",
            entry.source_name or "-",
            entry.state if entry.seen else f"{entry.state} (unseen)",
            entry.pid or "-",
            format_bytes(entry.pss_bytes) if entry.pss_bytes is not None else "-",
            tables.age_since(entry.created_at) if entry.created_at else "-",
            entry.controller,
        )
        for entry in report.entries
    ]
    tables.table(("ID", "DRIVER", "WARM", "SOURCE", "STATE", "PID", "PSS", "AGE", "CONTROLLER"), rows)
    for controller in report.controllers:
        line = f"process {controller.pid} keeps at most {controller.warm}"
        if not controller.seen:
            line += " (it can't be seen from here)"
        output.say(f"{line}; held back: {controller.held_back}" if controller.held_back else line)
    if not report.controllers:
        output.say("no process keeps a pool here; `ramet serve` does")
