"""exec: run a command in a guest, with this process's streams."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ramet.cli import calling, output
from ramet.cli.completion import complete_variable
from ramet.cli.options import Command, Json, Reference, environment, without_separator
from ramet.errors import RametError, UsageError
from ramet.text import as_typed
from ramet.units import parse_time_limit

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from ramet.api.handles import VM
    from ramet.api.host import Host
    from ramet.model.command import Chunk
    from ramet.model.exec_result import ExecResult

# Everything after REF belongs to the command, options too.
SETTINGS = {"allow_interspersed_args": False, "ignore_unknown_options": False}


def execute(
    reference: Reference,
    command: Command = None,
    detach: Annotated[
        bool,
        typer.Option("--detach", "-d", help="Don't wait: print the pid. The output goes to `ramet logs`."),
    ] = False,
    interactive: Annotated[
        bool,
        typer.Option(
            "--interactive",
            "-i",
            help="Forward standard input from a terminal. A pipe or a file is always forwarded.",
        ),
    ] = False,
    timeout: Annotated[
        float | None, typer.Option(metavar="S", help="Kill the command after S seconds (exit code 124).")
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
    cwd: Annotated[
        str | None, typer.Option(metavar="PATH", help="The working directory; the user's home unless given.")
    ] = None,
    user: Annotated[
        str | None, typer.Option("--user", "-u", metavar="USER", help="The user: a name, uid or uid:gid.")
    ] = None,
    json: Json = False,
) -> None:
    """Run a command in a guest.

    The exit code is the command's. ramet's own errors use 124 to 127.
    """

    async def body(host: Host) -> int:
        words = without_separator(command)
        if not words:
            raise UsageError("there is no command", hint=f"write `ramet exec {reference} -- CMD`")
        limit_s = parse_time_limit(timeout, what="--timeout")
        vm = await host.get(reference)
        variables = environment(env or [])
        place, account = (None if text is None else as_typed(text) for text in (cwd, user))
        if detach:
            await _detached(vm, words, env=variables, cwd=place, user=account, timeout=timeout, json=json)
            return 0
        result = await run_command(
            vm,
            words,
            env=variables,
            cwd=place,
            user=account,
            timeout=limit_s,
            interactive=interactive,
            collect=json,
        )
        if json:
            from ramet.model.documents import command_result

            output.emit(command_result(result))
        return result.shell_code

    calling.with_host(body, json=json, in_guest=True)


async def _detached(
    vm: VM,
    words: list[str],
    *,
    env: Mapping[str, str],
    cwd: str | None,
    user: str | None,
    timeout: float | None,
    json: bool,
) -> None:
    from ramet.model.documents import Spawned

    if timeout is not None:
        raise UsageError("a detached command has no timeout", hint="leave --timeout or --detach out")
    pid = await vm.spawn(*words, env=env, cwd=cwd, user=user)
    if json:
        output.emit(Spawned(pid=pid))
    else:
        output.say(str(pid))


async def run_command(
    vm: VM,
    words: list[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    user: str | None = None,
    timeout: float | None = None,
    interactive: bool = False,
    collect: bool = False,
    started: Callable[[], Awaitable[None]] | None = None,
) -> ExecResult:
    """Run a command from its start to its end.

    With `collect` the output is in the result, else it goes to this process's streams. `started` is awaited
    as soon as the command runs.
    """
    from ramet.cli import streams
    from ramet.model.exec_result import Collector

    forward = streams.stdin_is_worth_forwarding(interactive=interactive)
    collector = Collector(words, timeout_s=timeout, hint="leave --json out to stream it")

    async def keep(chunk: Chunk) -> None:
        collector.take(chunk.stream, chunk.data)

    take = keep if collect else streams.to_own_streams
    async with vm.process(*words, env=env, cwd=cwd, user=user, timeout=timeout, stdin=forward) as process:
        if started is not None:
            await started()
        status = await streams.stream(process, forward_stdin=forward, take=take)
    return await _noted(vm, collector.result(status), quiet=collect)


async def _noted(vm: VM, result: ExecResult, *, quiet: bool) -> ExecResult:
    """Return a result with a note if the command failed and its guest's root is full, and print the note."""
    if result.ok:
        return result
    from msgspec.structs import replace

    from ramet.model.rootfs import why_full

    try:
        root = await vm.root()
    except RametError:
        return result  # the guest has ended, for example: the result stands
    note = None if root is None else why_full(vm.name, root)
    if note is not None and not quiet:
        output.warn(f"ramet: {note}")
    return replace(result, note=note)
