"""A guest's command on this process's standard streams.

Nothing here blocks the event loop or leaves a thread behind: each read and write first waits until the
descriptor is ready. Regular files can't be waited for (epoll(7)) and never block.
"""

from __future__ import annotations

import fcntl
import os
import select
import stat
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import anyio

from ramet.units import KIB

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ramet.api.commands import Process
    from ramet.model.command import Chunk, ExitStatus

_READ_BYTES = 64 * KIB


def stdin_is_worth_forwarding(*, interactive: bool) -> bool:
    """Say whether standard input goes to the guest: if the user asks for it, or if it is no terminal."""
    if sys.stdin is None or not _is_readable(0):
        return False  # nohup(1) gives a program an input that can't be read
    return interactive or not os.isatty(0)


def _is_readable(descriptor: int) -> bool:
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    return flags & os.O_ACCMODE != os.O_WRONLY and not flags & os.O_PATH


async def stream(
    process: Process, *, forward_stdin: bool, take: Callable[[Chunk], Awaitable[None]]
) -> ExitStatus:
    """Feed a command and take its output until it ends, even if standard input doesn't."""
    async with _fed(process, forward_stdin=forward_stdin):
        async for chunk in process.output():
            await take(chunk)
    return await process.wait()


@asynccontextmanager
async def _fed(process: Process, *, forward_stdin: bool) -> AsyncIterator[None]:
    """Forward standard input to the command inside the block."""
    async with AsyncExitStack() as stack:
        if forward_stdin:
            tasks = await stack.enter_async_context(anyio.create_task_group())
            stack.callback(tasks.cancel_scope.cancel)
            tasks.start_soon(_feed, process)
        yield


async def _feed(process: Process) -> None:
    while data := await read_some(0):
        await process.write(data)
    await process.close_stdin()


async def read_some(descriptor: int) -> bytes:
    """Read some bytes; none at the end of the file.

    "Nothing yet" isn't the end: the descriptor may be non-blocking, and another process may take the bytes
    first.
    """
    while True:
        try:
            await anyio.wait_readable(descriptor)
        except PermissionError:
            pass  # a regular file
        try:
            return os.read(descriptor, _READ_BYTES)
        except BlockingIOError:
            continue


async def write_all(descriptor: int, data: bytes) -> None:
    """Write everything, as fast as the reader takes it. Raises `BrokenPipeError` without a reader."""
    view = memoryview(data)
    # A writable pipe has room for PIPE_BUF bytes (pipe(7)); more could block this process.
    most = len(view) if _is_nonblocking(descriptor) else select.PIPE_BUF
    while view:
        try:
            await anyio.wait_writable(descriptor)
        except PermissionError:
            most = len(view)
        try:
            view = view[os.write(descriptor, view[:most]) :]
        except BlockingIOError:
            continue


def _is_nonblocking(descriptor: int) -> bool:
    return bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_NONBLOCK)


async def fail_when_unread(descriptor: int) -> None:
    """Raise `BrokenPipeError` as soon as a pipe has no reader, also while nothing is written.

    Only a pipe tells: poll(2) calls its writing end readable when the last reader has closed it. (A
    descriptor that is open for reading too has a reader: this process.)
    """
    if stat.S_ISFIFO(os.fstat(descriptor).st_mode) and not _is_readable(descriptor):
        await anyio.wait_readable(descriptor)
        raise BrokenPipeError


async def to_own_streams(chunk: Chunk) -> None:
    """Write output to this process's own stream, unbuffered."""
    await write_all(1 if chunk.stream == "stdout" else 2, chunk.data)
