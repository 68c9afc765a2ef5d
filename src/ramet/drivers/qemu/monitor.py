"""Short leases of a QEMU monitor.

A QEMU monitor socket serves one client at a time, and any number of ramet processes may work on one instance:
each takes the lock beside the socket, connects, sends its commands and disconnects.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import anyio
from qemu.qmp import (
    ConnectError,
    EventListener,
    ExecInterruptedError,
    ExecuteError,
    Message,
    QMPClient,
    QMPError,
)

from ramet.drivers.qemu import releases
from ramet.drivers.versions import release
from ramet.errors import VmmError, VmmTimeoutError
from ramet.system import sockets
from ramet.system.locks import file_lock

SOCKET = "qmp.sock"
LOCK = "qmp.lock"
ANSWER_LIMIT_S = 20.0
"""Longest time for the lock, the connection and each command."""
_CLOSE_LIMIT_S = 2.0
_QUEUE_FULL_S = 0.05
_FILE = "vmstate"
"""QEMU's name for the file that it gets."""
_FD_SET = 0
"""The number of the set of descriptors that the file is put into, where QEMU wants it so."""

# The library reports a peer that went away on its own logger as well as by exception; the exception is
# enough.
logging.getLogger("qemu.qmp").addHandler(logging.NullHandler())
logging.getLogger("qemu.qmp").propagate = False


class _Client(QMPClient):
    """A QMP client without the library's log of messages.

    The library makes a text of each message, even if nobody reads the log, and the texts were a tenth of a
    fork's CPU time in ramet.

    File descriptors go over ramet's own socket. The library takes the socket out of the transport, by a
    private attribute that only asyncio's transports have, and uvloop's don't.
    """

    def __init__(self, name: str, connection: socket.socket) -> None:
        super().__init__(name)
        self.connection = connection

    def send_fd_scm(self, fd: int) -> None:
        """Give QEMU an open file, for the `getfd` or `add-fd` that follows. Raises `OSError`.

        The caller keeps the file.
        """
        # A blank between two commands, to carry the file (SCM_RIGHTS, unix(7)).
        socket.send_fds(self.connection, [b" "], [fd])

    def _cb_outbound(self, msg: Message) -> Message:
        return msg

    def _cb_inbound(self, msg: Message) -> Message:
        return msg


class Monitor:
    """A leased monitor. Its errors are ramet's."""

    def __init__(self, client: _Client, *, who: str) -> None:
        self._client = client
        self._who = who

    @property
    def version(self) -> str:
        """The version in QEMU's greeting, such as `7.2.22`; empty if the greeting has none."""
        greeting = self._client.greeting
        version = cast("dict[str, dict[str, int]]", greeting.QMP.version) if greeting else {}
        numbers = version.get("qemu", {})
        parts = [numbers.get(part) for part in ("major", "minor", "micro")]
        return ".".join(map(str, parts)) if None not in parts else ""

    async def execute(self, command: str, **arguments: object) -> Any:
        """Execute a QMP command, and return its value.

        Raises `VmmError` when the command is refused or the VMM ends, `VmmTimeoutError` when no answer comes;
        the command's effect is unknown then, and the lease continues.
        """
        try:
            with anyio.fail_after(ANSWER_LIMIT_S):
                return await self._client.execute(command, arguments or None)
        except TimeoutError as error:
            raise VmmTimeoutError(
                f"{self._who}: QEMU didn't answer {command} within {ANSWER_LIMIT_S:g} s"
            ) from error
        except ExecuteError as error:
            raise VmmError(f"{self._who}: QEMU refused {command}: {error}") from error
        except (ExecInterruptedError, QMPError, OSError) as error:
            raise VmmError(f"{self._who}: QEMU went away during {command}") from error

    async def migrated_from(self, fd: int, *before: str) -> None:
        """Load the machine from the file that is open at `fd`, and wait until it is loaded.

        The caller keeps the file.

        `before` are commands that QEMU is to have carried out by then. All commands but the one that takes
        the file are sent at once, to be carried out in turn: waiting for each answer would be in vain. Raises
        `VmmError` when one of them fails.
        """
        steps: list[tuple[str, dict[str, object]]] = [
            ("migrate-set-capabilities", {"capabilities": [{"capability": "events", "state": True}]}),
            *((command, {}) for command in before),
        ]
        if self.version and release(self.version) >= releases.FD_SETS_SINCE:
            take: tuple[str, dict[str, object]] = ("add-fd", {"fdset-id": _FD_SET})
            steps.append(("migrate-incoming", {"uri": f"file:/dev/fdset/{_FD_SET}"}))
            steps.append(("remove-fd", {"fdset-id": _FD_SET}))  # it has opened the file by then
        else:
            take = ("getfd", {"fdname": _FILE})
            steps.append(("migrate-incoming", {"uri": f"fd:{_FILE}"}))
        listener = EventListener("MIGRATION")
        with self._client.listen(listener):
            try:
                self._client.send_fd_scm(fd)
            except OSError as error:
                raise VmmError(f"{self._who}: QEMU's monitor takes no file descriptor") from error
            # Answered before anything else is sent: QEMU's main thread takes the file out of a list that its
            # monitor's thread goes through whenever something arrives, with no lock (chardev/char-socket.c,
            # tcp_get_msgfds and tcp_chr_recv; two of some thousand 7.2 died of it).
            await self.execute(take[0], **take[1])
            outcomes = await asyncio.gather(
                *(self.execute(command, **arguments) for command, arguments in steps), return_exceptions=True
            )
            for (command, _), outcome in zip(steps, outcomes, strict=True):
                if command == "remove-fd" and type(outcome) is VmmError:
                    # It was gone by then: from 9.1 on QEMU ends when it can't load something.
                    raise VmmError(f"{self._who}: QEMU could not load the vmstate") from outcome
                if isinstance(outcome, BaseException):
                    raise outcome
            async for event in listener:
                match cast("dict[str, str]", event["data"])["status"]:
                    case "completed":
                        return
                    case "failed":
                        raise VmmError(f"{self._who}: QEMU could not load the vmstate")
                    case _:
                        continue


@asynccontextmanager
async def monitor(
    directory: Path, *, who: str, limit_s: float = 2 * ANSWER_LIMIT_S
) -> AsyncIterator[Monitor]:
    """Lease the monitor of the QEMU that works in `directory`, for at most `limit_s` with the wait for it.

    Raises `VmmTimeoutError` when the lock or the answers don't come in time, `VmmError` when nobody listens.
    The lease ends in any case.
    """
    late = VmmTimeoutError(f"{who}: QEMU's monitor wasn't done within {limit_s:g} s")
    mute = VmmTimeoutError(f"{who}: QEMU's monitor didn't answer within {ANSWER_LIMIT_S:g} s")
    with anyio.move_on_after(limit_s) as limit:
        async with file_lock(directory / LOCK, wait_s=min(limit_s, ANSWER_LIMIT_S), busy=mute):
            try:
                with anyio.fail_after(ANSWER_LIMIT_S):
                    client = _Client(who, await _dial(directory))
                    await _connect(client)
            except TimeoutError as error:
                raise mute from error
            except (ConnectError, OSError) as error:
                raise VmmError(f"{who}: QEMU's monitor doesn't answer: {error}") from error
            try:
                yield Monitor(client, who=who)
            finally:
                await _disconnect(client)
    if limit.cancelled_caught:
        raise late


async def _dial(directory: Path) -> socket.socket:
    """Connect to the monitor.

    A full queue gives no event to wait for, so the connection is tried again.
    """
    while True:
        try:
            return sockets.connect(directory, SOCKET)
        except BlockingIOError:
            await anyio.sleep(_QUEUE_FULL_S)


async def _connect(client: _Client) -> None:
    """Let the library take over the client's connection.

    A cancellation waits for that, and disconnects again.

    Cancelled in mid-connect, the library would tidy up with its own awaits, which anyio cancels again; cut
    off in mid-connect, it forgets a task. A QEMU that doesn't answer is cut off all the same, after
    `_CLOSE_LIMIT_S`.
    """
    connecting = asyncio.ensure_future(client.connect(client.connection))
    try:
        await asyncio.shield(connecting)
    except asyncio.CancelledError:
        with anyio.CancelScope(shield=True):
            await asyncio.wait({connecting}, timeout=_CLOSE_LIMIT_S)
            if not connecting.done():
                client.connection.shutdown(socket.SHUT_RDWR)
                await asyncio.wait({connecting}, timeout=_CLOSE_LIMIT_S)
        if connecting.done() and connecting.exception() is None:
            await _disconnect(client)
        raise


async def _disconnect(client: _Client) -> None:
    with anyio.move_on_after(_CLOSE_LIMIT_S, shield=True):
        try:
            await client.disconnect()
        except (QMPError, OSError, EOFError):
            pass  # it is gone, which is what a disconnect is for
