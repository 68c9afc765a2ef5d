"""Connections to the agent of a guest under Firecracker, whose vsock device is a UNIX socket on the host.

A client of that socket names a port of the guest with a line `CONNECT 1024`, and reads a line `OK <its own
port>` when the guest has accepted; then it has the byte stream (Firecracker, docs/vsock.md). Any number of
clients may be connected at once: there is nothing to lock.
"""

from __future__ import annotations

import errno
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import anyio
import anyio.abc

from ramet.errors import GuestError, GuestTimeoutError, ProtocolError
from ramet.paths import VSOCK_SOCKET
from ramet.system.streams import SocketStream, connect_stream

AGENT_PORT: Final = 1024
"""The port on which the agent listens in the guest."""

_FIRST_PAUSE_S: Final = 0.002
_LONGEST_PAUSE_S: Final = 0.05
_ANSWER_MAX_BYTES: Final = 32
_ANSWER: Final = re.compile(rb"OK [0-9]{1,10}\n")


@asynccontextmanager
async def connect_vsock(
    directory: Path, wait_s: float, *, listener_pid: int | None = None
) -> AsyncIterator[anyio.abc.ByteStream]:
    """Connect to the agent of the guest whose `vsock.sock` is in `directory`.

    A connection that is made before the guest's driver has activated the device waits in the socket's queue:
    Firecracker watches the socket from the activation on (1.12, vsock/event_handler.rs,
    `handle_activate_event`). So a guest's boot needs no polling. After that, a request is passed to the guest
    at once, and answered at once: by `OK`, or by the end of the connection if nobody listens (yet), when the
    guest resets its connections or when too many are connected. Then the connection is made again: the first
    time without a pause, later after 2 ms and more, up to 50 ms.

    At the block's end, and when it is cancelled, the socket is closed. Raises `GuestTimeoutError` when the
    guest hasn't accepted within `wait_s`, `GuestError` when the directory or the socket isn't there or
    nothing listens, `ProtocolError` when what answers isn't Firecracker. Nothing is open then.

    The first connection after a restore may be accepted and then lost, because the guest resets its
    connections when it learns that it was restored: its user makes another.

    With `listener_pid` a socket on which another process listens is a `GuestError` too.
    """
    deadline_s = time.monotonic() + wait_s
    pause_s = 0.0
    while (stream := await _try(directory, deadline_s, listener_pid)) is None:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise GuestTimeoutError(f"the guest of {directory.name} accepted no connection in {wait_s:g} s")
        await anyio.sleep(min(pause_s, left_s))
        pause_s = min(max(2 * pause_s, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
    try:
        yield stream
    finally:
        await _close(stream)


async def _try(directory: Path, deadline_s: float, listener_pid: int | None) -> SocketStream | None:
    """Try to connect.

    None when the connection ended before the guest accepted it, or when the time is over.
    """
    try:
        stream = connect_stream(directory, VSOCK_SOCKET)
    except BlockingIOError:
        return None  # the queue is full: of a guest that boots, with many who wait for it
    except OSError as error:
        raise GuestError(
            f"no connection to {VSOCK_SOCKET} of {directory.name}: {error.strerror or error}",
            hint="the VM has probably ended: see its log",
        ) from error
    accepted = False
    try:
        if listener_pid is not None and stream.peer_pid() != listener_pid:
            raise GuestError(f"{VSOCK_SOCKET} of {directory.name} is another VMM's")
        with anyio.move_on_after(max(0.0, deadline_s - time.monotonic())):
            accepted = await _ask(stream)
    finally:
        if not accepted:
            await _close(stream)
    return stream if accepted else None


async def _ask(stream: SocketStream) -> bool:
    """Ask for the agent's port: True when the guest has accepted, False when the connection ended instead.

    Bytes after the answer stay in the stream.
    """
    answer = b""
    try:
        # In one piece: Firecracker takes what is there when it looks, and a part of the line for an error.
        await stream.send(b"CONNECT %d\n" % AGENT_PORT)
        # Not a byte more than the line is taken out of the stream.
        while not answer.endswith(b"\n") and len(answer) < _ANSWER_MAX_BYTES:
            there = await stream.peek(_ANSWER_MAX_BYTES - len(answer))
            answer += await stream.receive(there.find(b"\n") + 1 or len(there))
    except (anyio.EndOfStream, anyio.BrokenResourceError):
        return False
    except OSError as error:
        if error.errno not in (errno.ECONNRESET, errno.EPIPE):
            raise GuestError(f"the connection to {VSOCK_SOCKET} failed: {error.strerror or error}") from error
        return False
    if not _ANSWER.fullmatch(answer):
        raise ProtocolError(f"{VSOCK_SOCKET} answered {answer!r} where OK was expected")
    return True


async def _close(stream: anyio.abc.ByteStream) -> None:
    with anyio.CancelScope(shield=True):
        await stream.aclose()
