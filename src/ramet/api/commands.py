"""Commands in a guest: the part of an instance's handle that runs them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager

from ramet.api.arguments import public
from ramet.calls import calls_into_host
from ramet.engine.context import Context
from ramet.engine.exec import commands
from ramet.guest.process import Process as Process
from ramet.model.command import Readable, Word
from ramet.model.exec_result import DEFAULT_MAX_OUTPUT_BYTES, ExecResult
from ramet.model.record import Record


@calls_into_host()
class Commands:
    """Base of a handle whose guest runs commands. The handle has `_context` and `_record`."""

    _context: Context

    @property
    def _record(self) -> Record:
        raise NotImplementedError

    @public
    async def exec(
        self,
        *argv: Word,
        stdin: bytes | str | Readable | None = None,
        env: Mapping[str, Word] | None = None,
        cwd: Word | None = None,
        user: str | int | None = None,
        timeout: float | None = None,
        check: bool = False,
        max_output_bytes: int = DEFAULT_MAX_OUTPUT_BYTES,
    ) -> ExecResult:
        """Run a program in the guest to its end.

        Words are text, bytes or paths, as `subprocess` has them. `stdin` is what it reads: bytes, a text, or
        an open file, which is read as it is taken; None: `/dev/null`. `env` is added to the guest's default
        environment, `cwd` is the user's home directory unless given, `user` is `name`, `uid` or `uid:gid`;
        in an instance of a container image the three are its main process's unless given. `timeout` is in
        seconds. Raises `ExecNotFoundError`, `ExecNotExecutableError` or `ExecError` when it
        can't be started; `ExecTimeoutError` when its time runs out (it is killed with its process group
        then); with `check`, `ExecError` when it fails; `GuestError` when it writes more than
        `max_output_bytes` (killed too); `WrongStateError` when the instance doesn't run.
        """
        command = commands.request(
            argv, env=env, cwd=cwd, user=user, timeout_s=timeout, stdin_open=stdin is not None
        )
        result = await commands.execute(
            self._context, self._record, command, stdin=stdin, max_output_bytes=max_output_bytes
        )
        return result.check() if check else result

    @public
    def process(
        self,
        *argv: Word,
        env: Mapping[str, Word] | None = None,
        cwd: Word | None = None,
        user: str | int | None = None,
        timeout: float | None = None,
        stdin: bool = False,
    ) -> AbstractAsyncContextManager[Process]:
        """Run a program in the guest, and read and write its streams inside the block.

        Leaving the block early kills the program.
        """
        command = commands.request(argv, env=env, cwd=cwd, user=user, timeout_s=timeout, stdin_open=stdin)
        return commands.process(self._context, self._record, command)

    @public
    def start_main(self, *, stdin: bool = False) -> AbstractAsyncContextManager[Process]:
        """Start the main process of an idle instance of a container image, and work with its streams.

        With its end the instance ends: `wait` for that behind the block. Leaving the block early kills it.
        With `stdin` its standard input is open, else it reads `/dev/null`. Raises `ExecNotFoundError`,
        `ExecNotExecutableError` or `ExecError` when it can't be started: the guest runs on without it;
        `WrongStateError` when the instance has no main process, has started it already, or doesn't run.

            vm = await host.run("app", idle=True)
            async with vm.start_main() as main:
                status = await main.wait()
            await vm.wait()
            print(status.exit_code)
        """
        return commands.main_process(self._context, self._record, stdin_open=stdin)

    @public
    async def spawn(
        self,
        *argv: Word,
        env: Mapping[str, Word] | None = None,
        cwd: Word | None = None,
        user: str | int | None = None,
        console: bool = True,
    ) -> int:
        """Start a program in the guest without waiting for its end, and return its pid there.

        The output goes to the console, which `logs` returns.
        """
        command = commands.request(argv, env=env, cwd=cwd, user=user, console=console)
        return await commands.spawn(self._context, self._record, command)
