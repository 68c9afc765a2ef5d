"""Short leases of a Firecracker API socket.

HTTP/1.1 over a UNIX socket. h11 has the protocol, this file the socket and the errors: connecting and two
requests take 0.4 ms so, 2.0 ms with httpx (whose import costs 35 ms and whose first client 40 ms more), and
0.25 ms with a parser of our own, which isn't worth having one. Firecracker serves requests one after the
other, whoever sends them, so no lock is needed.

Source: Firecracker's `swagger/firecracker.yaml`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.abc
import h11
import msgspec

from ramet.errors import VmmError, VmmTimeoutError
from ramet.host.streams import connect_stream
from ramet.units import KIB

SOCKET: Final = "api.sock"
ANSWER_LIMIT_S: Final = 20.0
_LONGEST_ANSWER_BYTES: Final = 64 * KIB
_RECEIVE_BYTES: Final = 16 * KIB
_QUEUE_FULL_S: Final = 0.02


class Api:
    """A leased API socket. Its errors are ramet's."""

    def __init__(self, stream: anyio.abc.ByteStream, *, who: str) -> None:
        self._stream = stream
        self._who = who
        self._http = h11.Connection(h11.CLIENT)

    async def call(self, method: str, path: str, body: dict[str, object] | None = None) -> dict[str, Any]:
        """One request and the JSON object that it returns, empty when it returns nothing.

        Raises `VmmError` when Firecracker refuses it, with its own words, or goes away meanwhile.
        """
        what = f"{method} {path}"
        content = b"" if body is None else msgspec.json.encode(body)
        headers = [("Host", "localhost"), ("Content-Length", str(len(content)))]
        if content:
            headers.append(("Content-Type", "application/json"))
        try:
            request = self._http.send(h11.Request(method=method, target=path, headers=headers))
            if content:
                request = (request or b"") + (self._http.send(h11.Data(data=content)) or b"")
            request = (request or b"") + (self._http.send(h11.EndOfMessage()) or b"")
            await self._stream.send(request)
            status, answer = await self._answer(what)
            self._http.start_next_cycle()
        except (h11.LocalProtocolError, h11.RemoteProtocolError) as error:
            raise VmmError(f"{self._who}: Firecracker's answer to {what} isn't HTTP: {error}") from error
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream, OSError) as error:
            raise VmmError(f"{self._who}: Firecracker went away during {what}") from error
        if status >= 300:
            raise VmmError(f"{self._who}: Firecracker refused {what}: {_fault(answer)}")
        try:
            return msgspec.json.decode(answer, type=dict[str, Any]) if answer.strip() else {}
        except msgspec.MsgspecError as error:
            raise VmmError(f"{self._who}: Firecracker's answer to {what} isn't JSON: {error}") from error

    async def _answer(self, what: str) -> tuple[int, bytes]:
        status, content = 0, bytearray()
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                self._http.receive_data(await self._stream.receive(_RECEIVE_BYTES))
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
async def api(directory: Path, *, who: str, longer_s: float = 0.0) -> AsyncIterator[Api]:
    """Lease the API of the Firecracker that works in `directory`, for `ANSWER_LIMIT_S` and `longer_s` at
    most.

    Raises `VmmTimeoutError` when the answers don't come in time, `VmmError` when nobody listens. The
    connection is closed in any case.
    """
    timeout_s = ANSWER_LIMIT_S + longer_s
    try:
        with anyio.fail_after(timeout_s):
            stream = await _dial(directory, who)
            try:
                yield Api(stream, who=who)
            finally:
                with anyio.CancelScope(shield=True):
                    await stream.aclose()
    except TimeoutError as error:
        raise VmmTimeoutError(f"{who}: Firecracker's API didn't answer within {timeout_s:g} s") from error


async def _dial(directory: Path, who: str) -> anyio.abc.ByteStream:
    """A connection. While the queue is full there is no event to wait for, so it is tried again."""
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
    except (msgspec.MsgspecError, KeyError):
        return answer.decode(errors="replace")[:500] or "without a word"
