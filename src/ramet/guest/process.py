"""A command in the guest, as users see it: its input, its output, signals, its end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from ramet import arguments
from ramet.arguments import checked
from ramet.calls import UNBOUND, Admission, calls_into_host
from ramet.guest.command_stream import CommandStream
from ramet.handles import Handle
from ramet.model.command import Chunk, ExitStatus
from ramet.surface import exported


@exported
@calls_into_host()
class Process(Handle):
    """A command that runs in the guest. Made by `VM.process`; not for use outside its block.

    Its output has to be taken (`output`) for it to end: at most 256 KiB wait on the host, and the rest waits
    in the guest together with the command. Every method raises `GuestError` when the connection is lost.
    `pid` is the command's process number in the guest.
    """

    def __init__(self, stream: CommandStream, calls: Admission = UNBOUND) -> None:
        self.pid = stream.pid
        self._stream = stream
        self._calls = calls

    @property
    def program(self) -> str:
        """The command's first word."""
        return self._stream.program

    @property
    def awaits_its_user(self) -> bool:
        """True while output waits to be taken: the command's end comes behind the output."""
        return self._stream.awaits_its_user

    @checked({"data": arguments.data})
    async def write(self, data: bytes | str) -> None:
        """Feed standard input, as fast as the guest takes it.

        Bytes that the command no longer reads, because it has ended or closed its input, are dropped.
        """
        assert isinstance(data, bytes)
        await self._stream.write(data)

    async def close_stdin(self) -> None:
        """Let the command read end of file after the written bytes. A second call does nothing."""
        await self._stream.close_stdin()

    @checked({"number": arguments.signal_number})
    async def signal(self, number: int | str) -> None:
        """Send a signal, by number or by name (`SIGTERM`), to the command's process group.

        Does nothing when the command has ended.
        """
        assert isinstance(number, int)
        await self._stream.signal(number)

    async def output(self) -> AsyncIterator[Chunk]:
        """Yield the command's output, in the order in which the guest sent it, to its end.

        For one consumer.
        """
        async with aclosing(self._stream.output()) as chunks:
            async for chunk in chunks:
                yield chunk

    async def wait(self) -> ExitStatus:
        """Wait for the command's end, and return its status.

        Doesn't take output: a command that writes more than fits waits for `output`.
        """
        return await self._stream.wait()
