"""Short leases of a Firecracker API socket.

HTTP/1.1 over a UNIX socket. h11 has the protocol, this file the socket and the errors: connecting and two
requests take 0.4 ms, 2.0 ms with httpx (whose import costs 35 ms and whose first client 40 ms more), and 0.25
ms with a parser in ramet, which isn't worth having. Firecracker serves the requests of all clients one after
the other, so no lock is needed.

Source: Firecracker's `swagger/firecracker.yaml`.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.abc
import h11
import msgspec

from ramet.errors import VmmError, VmmTimeoutError
from ramet.system.streams import SocketStream, connect_stream
from ramet.units import KIB

SOCKET: Final = "api.sock"
ANSWER_LIMIT_S: Final = 20.0
_LONGEST_ANSWER_BYTES: Final = 64 * KIB
_RECEIVE_BYTES: Final = 16 * KIB
_QUEUE_FULL_S: Final = 0.02


class Api:
    """A leased API socket. Its errors are ramet's.

    A connection on which a request didn't come to its end is given up, and the next request makes a new one.
    """

    def __init__(self, directory: Path, *, who: str) -> None:
        self._directory = directory
        self._who = who
        self._connection: tuple[anyio.abc.ByteStream, h11.Connection] | None = None

    async def call(
        self, method: str, path: str, body: dict[str, object] | None = None, *, longer_s: float = 0.0
    ) -> dict[str, Any]:
        """Make a request, and return the JSON object of its answer, empty when there is none.

        Raises `VmmError` when Firecracker refuses it, with Firecracker's own words, when nobody listens or
        Firecracker ends meanwhile; `VmmTimeoutError` when the answer doesn't come within `ANSWER_LIMIT_S` and
        `longer_s`: Firecracker may still carry out the request then.
        """
        limit_s = ANSWER_LIMIT_S + longer_s
        try:
            with anyio.fail_after(limit_s):
                return await self._call(f"{method} {path}", method, path, body)
        except TimeoutError as error:
            raise VmmTimeoutError(
                f"{self._who}: Firecracker's API didn't answer within {limit_s:g} s"
            ) from error

    def adopt(self, connection: socket.socket) -> None:
        """Use a connection that another caller has made."""
        self._connection = SocketStream(connection), h11.Connection(h11.CLIENT)

    async def close(self) -> None:
        """Close the connection, if there is one. Takes no time."""
        if self._connection is not None:
            stream, _ = self._connection
            self._connection = None
            with anyio.CancelScope(shield=True):
                await stream.aclose()

    async def _call(
        self, what: str, method: str, path: str, body: dict[str, object] | None
    ) -> dict[str, Any]:
        content = b"" if body is None else msgspec.json.encode(body)
        headers = [("Host", "localhost"), ("Content-Length", str(len(content)))]
        if content:
            headers.append(("Content-Type", "application/json"))
        if self._connection is None:
            self._connection = await _dial(self._directory, self._who), h11.Connection(h11.CLIENT)
        stream, http = self._connection
        try:
            request = http.send(h11.Request(method=method, target=path, headers=headers))
            if content:
                request = (request or b"") + (http.send(h11.Data(data=content)) or b"")
            request = (request or b"") + (http.send(h11.EndOfMessage()) or b"")
            await stream.send(request)
            status, answer = await self._answer(what, stream, http)
            http.start_next_cycle()
        except BaseException as error:
            await self.close()
            match error:
                case h11.LocalProtocolError() | h11.RemoteProtocolError():
                    raise VmmError(
                        f"{self._who}: Firecracker's answer to {what} isn't HTTP: {error}"
                    ) from error
                case (
                    anyio.BrokenResourceError()
                    | anyio.ClosedResourceError()
                    | anyio.EndOfStream()
                    | OSError()
                ):
                    raise VmmError(f"{self._who}: Firecracker went away during {what}") from error
                case _:
                    raise
        if status >= 300:
            raise VmmError(f"{self._who}: Firecracker refused {what}: {_fault(answer)}")
        try:
            return msgspec.json.decode(answer, type=dict[str, Any]) if answer.strip() else {}
        except (msgspec.MsgspecError, RecursionError) as error:
            raise VmmError(f"{self._who}: Firecracker's answer to {what} isn't JSON: {error}") from error

    async def _answer(
        self, what: str, stream: anyio.abc.ByteStream, http: h11.Connection
    ) -> tuple[int, bytes]:
        status, content = 0, bytearray()
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(await stream.receive(_RECEIVE_BYTES))
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                content += event.data
                if len(content) > _LONGEST_ANSWER_BYTES:
                    raise VmmError(f"{self._who}: Firecracker's answer to {what} doesn't end")
            elif isinstance(event, h11.EndOfMessage):
                return status, bytes(content)
            elif isinstance(event, h11.ConnectionClosed):
                raise anyio.EndOfStream


@asynccontextmanager
async def api(directory: Path, *, who: str, limit_s: float | None = None) -> AsyncIterator[Api]:
    """Lease the API of the Firecracker that works in `directory`, for at most `limit_s` if given.

    Each request has its own limit. Raises `VmmTimeoutError` when the limit is passed. The connection is
    closed in any case.
    """
    leased = Api(directory, who=who)
    with anyio.move_on_after(limit_s) as limit:
        try:
            yield leased
        finally:
            await leased.close()
    if limit.cancelled_caught:
        raise VmmTimeoutError(f"{who}: a request to Firecracker's API took over {limit_s:g} s")


async def _dial(directory: Path, who: str) -> anyio.abc.ByteStream:
    """Connect. A full queue gives no event to wait for, so the connection is tried again."""
    while True:
        try:
            return connect_stream(directory, SOCKET)
        except BlockingIOError:
            await anyio.sleep(_QUEUE_FULL_S)
        except OSError as error:
            raise VmmError(f"{who}: Firecracker's API doesn't answer: {error.strerror or error}") from error


def _fault(answer: bytes) -> str:
    try:
        return str(msgspec.json.decode(answer, type=dict[str, Any])["fault_message"])
    except (msgspec.MsgspecError, RecursionError, KeyError):
        return answer.decode(errors="replace")[:500] or "without a word"
