"""run: boot an instance, and run a command in it if there is one."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from ramet.cli import calling, output
from ramet.cli.completion import (
    complete_accelerator,
    complete_driver,
    complete_image,
    complete_label,
    complete_pull,
    complete_root,
    complete_size,
    complete_variable,
)
from ramet.cli.options import Command, Json, environment, environment_files, pairs, without_separator
from ramet.cli.run_words import BUILT_IN
from ramet.errors import NotFoundError, UsageError
from ramet.text import as_typed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ramet.api.handles import VM
    from ramet.api.host import Host
    from ramet.model.command import Chunk
    from ramet.model.exec_result import ExecResult

# Everything after IMAGE belongs to the command, options too.
SETTINGS = {"allow_interspersed_args": False, "ignore_unknown_options": False}
_POWER_OFF_S: Final = 30.0
_FULL: Final = "root is full"
"""A part of the reason of an instance that ended so (`engine.vmm.main_end`)."""


def run(
    image: Annotated[
        str,
        typer.Argument(
            metavar="IMAGE",
            autocompletion=complete_image,
            help="The image to boot: a container image, `builtin`, or `bare` for `probe`.",
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
    entrypoint: Annotated[
        str | None,
        typer.Option(
            metavar="PROGRAM",
            help="Run PROGRAM instead of the image's entrypoint; empty for none. CMD has its arguments.",
        ),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(
            "--env",
            "-e",
            metavar="K=V",
            autocompletion=complete_variable,
            help="Set a variable. K alone copies it from this shell.",
        ),
    ] = None,
    env_files: Annotated[
        list[str] | None,
        typer.Option("--env-file", metavar="FILE", help="Set the variables in FILE: a K=V per line, or K."),
    ] = None,
    user: Annotated[
        str | None,
        typer.Option(
            "--user", "-u", metavar="USER", help="The user of the main process: a name, uid or uid:gid."
        ),
    ] = None,
    workdir: Annotated[
        str | None,
        typer.Option("--workdir", "-w", metavar="PATH", help="The main process's directory."),
    ] = None,
    stop_signal: Annotated[
        str | None,
        typer.Option(metavar="SIGNAL", help="The signal that asks the main process to end."),
    ] = None,
    rootfs: Annotated[
        str | None,
        typer.Option(
            metavar="PLACE",
            autocompletion=complete_root,
            help="The place for what the guest writes: disk[:SIZE], or ram[:SIZE] for guests that are thrown"
            " away; disk:10G unless given.",
        ),
    ] = None,
    ca: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Let the guest trust the certificates in FILE. May be repeated."),
    ] = None,
    pull: Annotated[
        str,
        typer.Option(
            metavar="WHEN",
            autocompletion=complete_pull,
            help="Ask a registry for the image if it is missing, never, or always.",
        ),
    ] = "missing",
    platform: Annotated[
        str | None,
        typer.Option(metavar="P", help="The platform of the image; another than this machine's can't run."),
    ] = None,
    idle: Annotated[
        bool, typer.Option("--idle", help="Don't start the main process: the guest runs until it is stopped.")
    ] = False,
    cold: Annotated[
        bool,
        typer.Option(
            "--cold", help="Boot the guest, instead of forking the one of this shape that booted before."
        ),
    ] = False,
    detach: Annotated[
        bool,
        typer.Option(
            "--detach", "-d", help="Don't wait for the main process or CMD. Its output goes to `ramet logs`."
        ),
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

    Everything after IMAGE is CMD. An instance of a container image runs the image's main process, with CMD as
    its arguments, and ends with it. An instance of `builtin` keeps running until it is stopped, also when CMD
    has ended, unless --rm is given. The exit code is the main process's or CMD's.
    """
    words = without_separator(command)
    is_container = image not in BUILT_IN
    in_foreground = is_container and not (detach or idle)

    async def body(host: Host) -> int:
        from ramet.cli.progress import working

        if idle and words and is_container:
            raise UsageError(
                "an idle guest runs no command, and there is one after IMAGE",
                hint="leave one of them out; `ramet exec` runs commands in an idle guest",
            )
        wishes: dict[str, Any] = {
            "command": words if words and is_container else None,
            "entrypoint": None if entrypoint is None else [as_typed(entrypoint)] if entrypoint else [],
            "env": {**environment_files(env_files or []), **environment(env or [])} or None,
            "user": None if user is None else as_typed(user),
            "pull": pull,
            "workdir": None if workdir is None else as_typed(workdir),
        }
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
                stop_signal=stop_signal,
                idle=idle,
                start_main=not in_foreground,
                rootfs=rootfs,
                ca=ca or [],
                platform=platform,
                cold=cold,
                **wishes,
            )
        await _say_why_it_booted(vm)
        if in_foreground:
            return await _main_process(vm, words, remove=remove, interactive=interactive, json=json)
        if words and not detach:
            return await _with_command(vm, words, remove=remove, interactive=interactive, json=json)
        if words and not is_container:
            await vm.spawn(*words)
        await vm.detach()
        if json:
            output.emit(await vm.info())
        else:
            output.say(vm.name)
        return 0

    def in_guest(error: Exception) -> bool:
        # Without CMD an image that isn't there is "not found", as ever; later codes may be the guest's.
        return bool(words) or (in_foreground and not isinstance(error, NotFoundError))

    calling.with_host(body, json=json, accel=accel, in_guest=in_guest)


async def _say_why_it_booted(vm: VM) -> None:
    """Say why the guest booted, if nobody wanted that."""
    boot = (await vm.info()).boot
    if boot is not None and boot.how == "fallback":
        output.warn(f"ramet: {vm.name} booted for itself: {output.clean(boot.detail)}")


async def _with_command(vm: VM, words: list[str], *, remove: bool, interactive: bool, json: bool) -> int:
    """Run CMD in a new instance, which is removed if CMD can't be started."""
    from ramet.cli.execute import run_command

    async def started() -> None:
        if not remove:
            await vm.detach()

    result = await run_command(vm, words, interactive=interactive, collect=json, started=started)
    if json:
        await _emit(vm, result)
    return result.shell_code


async def _main_process(vm: VM, words: list[str], *, remove: bool, interactive: bool, json: bool) -> int:
    """Run the main process of a new instance to its end. If it can't be started, the instance is removed.

    The first SIGINT, SIGTERM or SIGHUP goes to the main process; the next ends the wait, and the guest.
    """
    import anyio

    from ramet.cli import streams
    from ramet.model.exec_result import Collector

    async def keep(chunk: Chunk) -> None:
        collector.take(chunk.stream, chunk.data)

    forward = streams.stdin_is_worth_forwarding(interactive=interactive)
    collector = Collector(words or [vm.name], timeout_s=None, hint="leave --json out to stream it")
    async with _explained(words), vm.start_main(stdin=forward) as process:
        if not remove:
            await vm.detach()
        with calling.signals_go_to(process.signal):
            take = keep if json else streams.to_own_streams
            status = await streams.stream(process, forward_stdin=forward, take=take)
    result = collector.result(status)
    if json or not remove or not result.ok:
        with anyio.move_on_after(_POWER_OFF_S):
            await vm.wait()  # with its main process the guest powers off
    if not result.ok:
        await _say_if_full(vm)
    if json:
        await _emit(vm, result)
    return result.shell_code


async def _say_if_full(vm: VM) -> None:
    """Say that the guest's root was full, if it says so at its end: programs rarely tell what helps."""
    with suppress(NotFoundError):  # it was removed
        reason = (await vm.info()).reason
        if reason is not None and _FULL in reason:
            output.warn(f"ramet: {output.clean(reason)}")


@asynccontextmanager
async def _explained(words: list[str]) -> AsyncIterator[None]:
    """Say in an error that an option after IMAGE was taken for the program of the main process."""
    from ramet.errors import ExecNotFoundError

    try:
        yield
    except ExecNotFoundError as error:
        if not words or not words[0].startswith("-"):
            raise
        raise ExecNotFoundError(
            error.message,
            hint="everything after IMAGE is CMD, and this image has no entrypoint: put ramet's options"
            " before IMAGE",
        ) from error


async def _emit(vm: VM, result: ExecResult) -> None:
    import msgspec

    from ramet.model.documents import RunResult, command_result

    fields = msgspec.structs.asdict(await vm.info())
    output.emit(RunResult(**fields, command=command_result(result)))
