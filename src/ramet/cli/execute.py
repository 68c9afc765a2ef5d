"""exec: a command in a guest, with this process's streams."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ramet.cli import calling, output
from ramet.cli.options import Command, Json, Reference, environment, without_separator
from ramet.errors import UsageError
from ramet.text import as_typed
from ramet.units import parse_time_limit

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from ramet.cli.shapes import CommandResult
    from ramet.engine.host import Host
    from ramet.engine.vm import VM

# Everything after REF belongs to the command, options too.
SETTINGS = {"allow_interspersed_args": False, "ignore_unknown_options": False}


def execute(
    reference: Reference,
    command: Command = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Don't wait; output goes to `logs`; print the pid.")
    ] = False,
    interactive: Annotated[
        bool,
        typer.Option(
            "--interactive",
            "-i",
            help="Forward standard input from a terminal, too; from a pipe or file it always is.",
        ),
    ] = False,
    timeout: Annotated[
        float | None, typer.Option(metavar="S", help="Seconds until it is killed (exit code 124).")
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option("--env", "-e", metavar="K=V", help="A variable; K alone takes it from here."),
    ] = None,
    cwd: Annotated[
        str | None, typer.Option(metavar="PATH", help="Working directory; default: the user's home.")
    ] = None,
    user: Annotated[
        str | None, typer.Option("--user", "-u", metavar="USER", help="Name, uid or uid:gid.")
    ] = None,
    json: Json = False,
) -> None:
    """Run a command in a guest. Its exit code is returned; ramet's own troubles are 124 to 127."""

    async def body(host: Host) -> int:
        words = without_separator(command)
        if not words:
            raise UsageError("there is no command", hint=f"ramet exec {reference} -- CMD")
        limit_s = parse_time_limit(timeout, what="--timeout")
        vm = await host.get(reference)
        variables = environment(env or [])
        place, account = (None if one is None else as_typed(one) for one in (cwd, user))
        if detach:
            await _detached(vm, words, env=variables, cwd=place, user=account, timeout=timeout, json=json)
            return 0
        code, result = await run_command(
            vm,
            words,
            env=variables,
            cwd=place,
            user=account,
            timeout=limit_s,
            interactive=interactive,
            collect=json,
        )
        if result is not None:
            output.emit(result)
        return code

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
    from ramet.cli.shapes import Spawned

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
) -> tuple[int, CommandResult | None]:
    """A command from its start to its end: the exit code for the shell, and what it wrote if that is to be
    collected rather than passed on. `started` is awaited once it runs.
    """
    from ramet.cli import streams
    from ramet.cli.shapes import CommandResult
    from ramet.engine.vm import DEFAULT_MAX_OUTPUT_BYTES

    forward = streams.stdin_is_worth_forwarding(interactive=interactive)
    collected = streams.Collected(DEFAULT_MAX_OUTPUT_BYTES)
    take = collected.take if collect else streams.to_own_streams
    async with vm.process(*words, env=env, cwd=cwd, user=user, timeout=timeout, stdin=forward) as process:
        if started is not None:
            await started()
        status = await streams.stream(process, forward_stdin=forward, take=take)
    code = streams.shell_code(status, command=words[0], timeout_s=timeout)
    if not collect:
        return code, None
    return code, CommandResult(
        exit_code=status.exit_code,
        signal=status.signal,
        stdout=collected.stdout.decode(errors="replace"),
        stderr=collected.stderr.decode(errors="replace"),
    )
