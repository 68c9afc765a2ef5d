"""Verbs that change nothing: ps, tree, inspect, logs, stats."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ramet.cli import calling, output, references
from ramet.cli.completion import complete_instance_filter, complete_reference
from ramet.cli.options import Json, Reference, pairs
from ramet.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ramet.api.host import Host
    from ramet.model.schema import Instance, Usage

_FINAL = frozenset({"stopped", "failed"})


def ps(
    everything: Annotated[
        bool, typer.Option("--all", "-a", help="List stopped and failed instances too.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print ids only.")] = False,
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            metavar="K=V",
            autocompletion=complete_instance_filter,
            help="List instances with this label, or with state=STATE.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """List instances.

    Stopped and failed instances are listed with --all, or when --filter asks for their state.
    """

    async def body(host: Host) -> None:
        from ramet.model.lifecycle import State

        labels = pairs(filters or [], what="filter")
        state = labels.pop("state", None)
        _require_state(state)
        known = await host.list(everything=True)
        chosen = await host.list(everything=everything or state in _FINAL, labels=labels)
        shown = [instance for instance in chosen if state is None or instance.state == state]
        for instance in known:
            if instance.state == State.UNREADABLE:
                output.warn(f"ramet: {instance.name} ({instance.id}): {instance.reason}")
        if json:
            output.emit(shown)
        elif quiet:
            for instance in shown:
                output.say(instance.id)
        else:
            _show_instances(shown, {instance.id: instance.name for instance in known})

    calling.with_host(body, json=json)


def _require_state(state: str | None) -> None:
    from ramet.model.lifecycle import State

    if state is not None and state not in set(State):
        raise UsageError(f"{state!r} is not a state", hint=f"states are {', '.join(State)}")


def _show_instances(instances: Sequence[Instance], names: dict[str, str]) -> None:
    from ramet.cli import tables
    from ramet.units import format_bytes

    rows = [
        (
            instance.name,
            instance.id,
            tables.state(instance),
            instance.image,
            format_bytes(instance.memory_bytes),
            instance.cpus,
            f"{instance.driver}/{instance.accelerator}",
            names.get(instance.parent, instance.parent) if instance.parent else "-",
            instance.forks,
            tables.age(instance),
        )
        for instance in instances
    ]
    headers = ("NAME", "ID", "STATE", "IMAGE", "MEMORY", "CPUS", "DRIVER", "PARENT", "FORKS", "AGE")
    tables.table(headers, rows)
    for instance in instances:
        if not instance.seen and instance.reason:
            output.warn(f"ramet: {instance.name}: {output.clean(instance.reason)}")


def tree(json: Json = False) -> None:
    """Show which instance was forked from which.

    Snapshots and forks are listed below their source.
    """

    async def body(host: Host) -> None:
        from ramet.cli import tables

        nodes = await host.tree()
        await references.warn_of_unreadable(host, "instance", "snapshot")
        if json:
            output.emit(nodes)
        else:
            tables.tree(nodes, await host.snapshots())

    calling.with_host(body, json=json)


def inspect(reference: Reference, json: Json = False) -> None:
    """Show everything about an instance.

    The VMM and the guest are asked too.
    """

    async def body(host: Host) -> None:
        from ramet.cli import tables

        vm = await references.instance(host, reference, instead="ramet snapshot inspect")
        inspection = await vm.inspect()
        if json:
            output.emit(inspection)
        else:
            tables.fields(inspection)

    calling.with_host(body, json=json)


def logs(
    reference: Reference,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print what is added, until the instance stops.")
    ] = False,
    vmm: Annotated[
        bool, typer.Option("--vmm", help="Print the log of the VMM instead of the console.")
    ] = False,
    json: Json = False,
) -> None:
    """Print the end of a guest's console.

    In a pipe the bytes are unchanged. On a terminal control sequences are removed.
    """

    async def body(host: Host) -> None:
        import anyio

        from ramet.cli.streams import fail_when_unread

        vm = await host.get(reference)
        if not follow:
            _write_log(vm.id, await vm.logs(vmm=vmm), json=json)
            return
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fail_when_unread, 1)
            async for chunk in vm.follow_logs(vmm=vmm):
                _write_log(vm.id, chunk, json=json)
            tasks.cancel_scope.cancel()

    calling.with_host(body, json=json)


def _write_log(instance_id: str, data: bytes, *, json: bool) -> None:
    from ramet.model.documents import LogDocument
    from ramet.text import printable

    if json:
        output.emit(LogDocument(id=instance_id, text=data.decode(errors="replace")))
    elif output.is_terminal():
        output.write(printable(data))
    else:
        output.write(data)


def stats(
    reference: Annotated[
        str | None,
        typer.Argument(
            metavar="[REF]",
            autocompletion=complete_reference,
            help="Measure this instance only.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Measure the CPU time and the memory of instances.

    The sizes are measured now, in the VMMs' processes.
    """

    async def body(host: Host) -> None:
        if reference is not None:
            usage = await (await host.get(reference)).stats()
            if json:
                output.emit(usage)
            else:
                _show_usage([usage])
            return
        usages = await host.stats()
        if json:
            output.emit(usages)
        else:
            _show_usage(usages)

    calling.with_host(body, json=json)


def _show_usage(usages: Sequence[Usage]) -> None:
    from ramet.cli import tables
    from ramet.units import format_bytes

    rows = [
        (
            usage.name,
            usage.id,
            f"{usage.cpu_seconds:.1f} s",
            format_bytes(usage.rss_bytes),
            format_bytes(usage.pss_bytes),
            format_bytes(usage.private_dirty_bytes),
            format_bytes(usage.guest_private_bytes),
            usage.mem_file_links,
        )
        for usage in usages
    ]
    tables.table(("NAME", "ID", "CPU", "RSS", "PSS", "PRIVATE", "OWN RAM", "LINKS"), rows)
