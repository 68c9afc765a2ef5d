"""demo: boot, fork and measure, in a temporary home."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from ramet.cli import calling, output
from ramet.cli.completion import complete_size
from ramet.cli.options import Json

if TYPE_CHECKING:
    from ramet.model.demo import DemoReport


def demo(
    forks: Annotated[int, typer.Option(metavar="N", help="The number of forks.")] = 8,
    memory: Annotated[
        str, typer.Option(metavar="SIZE", autocompletion=complete_size, help="The RAM of each guest.")
    ] = "256M",
    json: Json = False,
) -> None:
    """Boot a guest, fork it, and measure what the forks share.

    Each fork proves that it inherited the guest's memory and that no other fork sees what it writes. The last
    line compares two sizes: the memory of the forks if each had a copy of the mem-file, and the memory that
    they really occupy, which is one mem-file plus the pages that each fork changed. The demo uses a temporary
    home and removes everything it made.
    """

    async def body() -> int:
        from ramet.api.demo import demonstrate, require_memory
        from ramet.api.host import Host
        from ramet.api.temporary_home import temporary_home

        require_memory(memory)
        async with temporary_home() as home, Host(home) as host:
            report = await demonstrate(host, count=forks, memory=memory, step=_silent if json else _step)
        if json:
            output.emit(report)
        else:
            _show(report)
        for check in report.failed_checks:
            output.warn(f"ramet: {check}")
        return 1 if report.failed_checks else 0

    calling.call(body, json=json)


@contextmanager
def _step(what: str) -> Iterator[None]:
    """Write a line for a step when it is done, with its time."""
    from ramet.cli.progress import working

    began = time.perf_counter()
    with working(what):
        yield
    output.say(f"{time.perf_counter() - began:6.1f} s  {what}")


@contextmanager
def _silent(_what: str) -> Iterator[None]:
    yield


def _show(report: DemoReport) -> None:
    from ramet.cli import tables
    from ramet.units import format_bytes

    headers = (
        "FORK",
        "MEMORY",
        "INODE",
        "LINKS",
        "OWN RAM",
        "TOTAL",
        "INHERITED",
        "THEN ITS OWN",
    )
    rows = [
        (
            fork.receipt.name,
            fork.receipt.memory.mode,
            fork.receipt.memory.inode,
            fork.receipt.memory.links,
            format_bytes(fork.guest_private_bytes),
            f"{fork.receipt.timings_ms.total:.0f} ms",
            fork.inherited_digest[:8],
            fork.own_digest[:8],
        )
        for fork in report.forks
    ]
    output.say("")
    tables.table(headers, rows)
    output.say("")
    digest = report.template_digest.rpartition(":")[2]
    if not report.failed_checks:
        output.say(f"the template's mem-file is unchanged: digest {digest[:16]}")
    copied, fact = format_bytes(report.if_copied_bytes), format_bytes(report.in_fact_bytes)
    took = f"{report.total_ms / 1000:.1f} s in all"
    output.say(f"{len(report.forks)} forks: {copied} if copied, {fact} in fact ({took})")
