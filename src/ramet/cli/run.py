"""run: boot an instance, and perhaps a command in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ramet.cli import calling, output
from ramet.cli.options import Command, Json, pairs, without_separator

if TYPE_CHECKING:
    from ramet.api.handles import VM
    from ramet.api.host import Host


def run(
    image: Annotated[
        str,
        typer.Argument(metavar="IMAGE", help="What to boot; `ramet image ls` lists them. `bare` is `probe`."),
    ],
    command: Command = None,
    name: Annotated[str | None, typer.Option(metavar="N", help="Its name; invented if not given.")] = None,
    memory: Annotated[str, typer.Option(metavar="SIZE", help="RAM, such as 256M or 2G.")] = "256M",
    cpus: Annotated[int, typer.Option(metavar="N", help="Virtual CPUs.")] = 1,
    driver: Annotated[str, typer.Option(metavar="D", help="auto, or a driver's name.")] = "auto",
    accel: Annotated[
        str, typer.Option(metavar="A", help="auto (KVM where it runs Linux, else emulation), kvm or tcg.")
    ] = "auto",
    disks: Annotated[
        list[str] | None,
        typer.Option(
            "--disk",
            metavar="SIZE[:PATH]",
            help="An empty data disk, /dev/vda and on; with PATH it has a filesystem, mounted there."
            " Can be repeated.",
        ),
    ] = None,
    labels: Annotated[
        list[str] | None, typer.Option("--label", metavar="K=V", help="A label. Can be given several times.")
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Don't wait for CMD; its output goes to `logs`.")
    ] = False,
    remove: Annotated[
        bool, typer.Option("--rm", help="Remove the instance when CMD has ended, or once it has stopped.")
    ] = False,
    interactive: Annotated[
        bool,
        typer.Option(
            "--interactive",
            "-i",
            help="Forward standard input from a terminal, too; from a pipe or file it always is.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Boot an instance. It goes on running: with a command, it outlives that, too, unless --rm is given."""
    words = without_separator(command)

    async def body(host: Host) -> int:
        with output.working(f"booting {image}", quiet=json):
            vm = await host.run(
                image,
                name=name,
                memory=memory,
                cpus=cpus,
                driver=driver,
                disks=disks or [],
                labels=pairs(labels or [], what="label"),
                auto_remove=remove,
            )
        if words and not detach:
            return await _with_command(vm, words, remove=remove, interactive=interactive, json=json)
        if words:
            await vm.spawn(*words)
        await vm.detach()
        if json:
            output.emit(await vm.info())
        else:
            output.say(vm.name)
        return 0

    calling.with_host(body, json=json, accel=accel, in_guest=bool(words))


async def _with_command(vm: VM, words: list[str], *, remove: bool, interactive: bool, json: bool) -> int:
    """Run CMD in a new instance. Not detached yet, it is removed if CMD can't even be started."""
    import msgspec

    from ramet.cli.execute import run_command
    from ramet.model.documents import RunResult, command_result

    async def started() -> None:
        if not remove:
            await vm.detach()

    result = await run_command(vm, words, interactive=interactive, collect=json, started=started)
    if json:
        fields = msgspec.structs.asdict(await vm.info())
        output.emit(RunResult(**fields, command=command_result(result)))
    return result.shell_code
