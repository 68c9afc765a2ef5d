"""run: boot an instance, and run a command in it if there is one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ramet.cli import calling, output
from ramet.cli.completion import (
    complete_accelerator,
    complete_driver,
    complete_image,
    complete_label,
    complete_size,
)
from ramet.cli.options import Command, Json, pairs, without_separator

if TYPE_CHECKING:
    from ramet.api.handles import VM
    from ramet.api.host import Host


def run(
    image: Annotated[
        str,
        typer.Argument(
            metavar="IMAGE",
            autocompletion=complete_image,
            help="The image to boot: `builtin`, or `bare` for `probe`.",
        ),
    ],
    command: Command = None,
    name: Annotated[
        str | None, typer.Option(metavar="N", help="The name of the instance; invented unless given.")
    ] = None,
    memory: Annotated[
        str,
        typer.Option(
            metavar="SIZE", autocompletion=complete_size, help="The RAM of the guest, such as 256M or 2G."
        ),
    ] = "256M",
    cpus: Annotated[int, typer.Option(metavar="N", help="The number of virtual CPUs.")] = 1,
    driver: Annotated[
        str,
        typer.Option(
            metavar="D",
            autocompletion=complete_driver,
            help="qemu, firecracker, cloud-hypervisor or auto.",
        ),
    ] = "auto",
    accel: Annotated[
        str,
        typer.Option(
            metavar="A",
            autocompletion=complete_accelerator,
            help="kvm, tcg (emulation) or auto (KVM where it runs the guest).",
        ),
    ] = "auto",
    disks: Annotated[
        list[str] | None,
        typer.Option(
            "--disk",
            metavar="SIZE[:PATH]",
            help="Add an empty disk: /dev/vda, then /dev/vdb. With PATH, the disk has a filesystem that is"
            " mounted there. May be repeated.",
        ),
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(
            "--label", metavar="K=V", autocompletion=complete_label, help="Add a label. May be repeated."
        ),
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Don't wait for CMD. Its output goes to `ramet logs`.")
    ] = False,
    remove: Annotated[
        bool, typer.Option("--rm", help="Remove the instance when CMD ends, or when the guest stops.")
    ] = False,
    interactive: Annotated[
        bool,
        typer.Option(
            "--interactive",
            "-i",
            help="Forward standard input from a terminal. A pipe or a file is always forwarded.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Boot an instance.

    The instance keeps running until it is stopped, also when CMD has ended, unless --rm is given. With CMD
    the exit code is the command's.
    """
    words = without_separator(command)

    async def body(host: Host) -> int:
        from ramet.cli.progress import working

        with working(f"booting {image}", quiet=json):
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
    """Run CMD in a new instance, which is removed if CMD can't be started."""
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
