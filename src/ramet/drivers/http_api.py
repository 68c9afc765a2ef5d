"""Short leases of a VMM's HTTP API: HTTP/1.1 over a UNIX socket in the VMM's directory.

h11 has the protocol, this file the socket and the errors: connecting and two requests take 0.4 ms, 2.0 ms
with httpx (whose import costs 35 ms and whose first client 40 ms more), and 0.25 ms with a parser in ramet,
which isn't worth having. These VMMs serve the requests of all clients one after the other, so no lock is
needed.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple, TypeVar

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


class Answer(NamedTuple):
    """An HTTP answer."""

    status: int
    content: bytes

    @property
    def is_refusal(self) -> bool:
        """True unless the request was carried out."""
        return self.status >= 300


class HttpApi:
    """A leased API socket. Its errors are ramet's.

    A connection on which a request didn't come to its end is given up, and the next request makes a new one.
    """

    vmm: ClassVar[str]
    """The VMM's name for people."""

    def __init__(self, directory: Path, *, who: str) -> None:
        self._directory = directory
        self._who = who
        self._connection: tuple[anyio.abc.ByteStream, h11.Connection] | None = None

    def refusal(self, answer: Answer) -> str:
        """Return the VMM's own words for a refusal."""
        raise NotImplementedError

    async def call(
        self, method: str, path: str, body: dict[str, object] | None = None, *, longer_s: float = 0.0
    ) -> dict[str, Any]:
        """Make a request, and return the JSON object of its answer, empty when there is none.

        Raises `VmmError` when the VMM refuses it, with the VMM's own words, and as `request`.
        """
        answer = await self.request(method, path, body, longer_s=longer_s)
        what = f"{method} {path}"
        if answer.is_refusal:
            raise VmmError(f"{self._who}: {self.vmm} refused {what}: {self.refusal(answer)}")
        try:
            content = answer.content
            return msgspec.json.decode(content, type=dict[str, Any]) if content.strip() else {}
        except (msgspec.MsgspecError, RecursionError) as error:
            raise VmmError(f"{self._who}: {self.vmm}'s answer to {what} isn't JSON: {error}") from error

    async def request(
        self, method: str, path: str, body: dict[str, object] | None = None, *, longer_s: float = 0.0
    ) -> Answer:
        """Make a request, and return its answer, also a refusal.

        Raises `VmmError` when nobody listens or the VMM ends meanwhile; `VmmTimeoutError` when the answer
        doesn't come within `ANSWER_LIMIT_S` and `longer_s`: the VMM may still carry out the request then.
        """
        limit_s = ANSWER_LIMIT_S + longer_s
        try:
            with anyio.fail_after(limit_s):
                return await self._request(f"{method} {path}", method, path, body)
        except TimeoutError as error:
            raise VmmTimeoutError(
                f"{self._who}: {self.vmm}'s API didn't answer within {limit_s:g} s"
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

    async def _request(self, what: str, method: str, path: str, body: dict[str, object] | None) -> Answer:
        content = b"" if body is None else msgspec.json.encode(body)
        headers = [("Host", "localhost"), ("Content-Length", str(len(content)))]
        if content:
            headers.append(("Content-Type", "application/json"))
        if self._connection is None:
            self._connection = await self._dial(), h11.Connection(h11.CLIENT)
        stream, http = self._connection
        try:
            request = http.send(h11.Request(method=method, target=path, headers=headers))
            if content:
                request = (request or b"") + (http.send(h11.Data(data=content)) or b"")
            request = (request or b"") + (http.send(h11.EndOfMessage()) or b"")
            await stream.send(request)
            answer = await self._answer(what, stream, http)
            http.start_next_cycle()
            return answer
        except BaseException as error:
            await self.close()
            match error:
                case h11.LocalProtocolError() | h11.RemoteProtocolError():
                    raise VmmError(
                        f"{self._who}: {self.vmm}'s answer to {what} isn't HTTP: {error}"
                    ) from error
                case (
                    anyio.BrokenResourceError()
                    | anyio.ClosedResourceError()
                    | anyio.EndOfStream()
                    | OSError()
                ):
                    raise VmmError(f"{self._who}: {self.vmm} went away during {what}") from error
                case _:
                    raise

    async def _answer(self, what: str, stream: anyio.abc.ByteStream, http: h11.Connection) -> Answer:
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
                    raise VmmError(f"{self._who}: {self.vmm}'s answer to {what} doesn't end")
            elif isinstance(event, h11.EndOfMessage):
                return Answer(status, bytes(content))
            elif isinstance(event, h11.ConnectionClosed):
                raise anyio.EndOfStream

    async def _dial(self) -> anyio.abc.ByteStream:
        """Connect. A full queue gives no event to wait for, so the connection is tried again."""
        while True:
            try:
                return connect_stream(self._directory, SOCKET)
            except BlockingIOError:
                await anyio.sleep(_QUEUE_FULL_S)
            except OSError as error:
                raise VmmError(
                    f"{self._who}: {self.vmm}'s API doesn't answer: {error.strerror or error}"
                ) from error


A = TypeVar("A", bound=HttpApi)


@asynccontextmanager
async def lease(
    kind: type[A], directory: Path, *, who: str, limit_s: float | None = None
) -> AsyncIterator[A]:
    """Lease the API of the VMM that works in `directory`, for at most `limit_s` if given.

    Each request has its own limit. Raises `VmmTimeoutError` when the limit is passed. The connection is
    closed in any case.
    """
    leased = kind(directory, who=who)
    with anyio.move_on_after(limit_s) as limit:
        try:
            yield leased
        finally:
            await leased.close()
    if limit.cancelled_caught:
        raise VmmTimeoutError(f"{who}: a request to {kind.vmm}'s API took over {limit_s:g} s")


def step(method: str, path: str, body: dict[str, object] | None = None) -> tuple[str, str]:
    """Return a request as text, for `ResumeSteps`, and a pattern that matches any answer to it."""
    text = "" if body is None else msgspec.json.encode(body).decode()
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n"
    if text:
        head += "Content-Type: application/json\r\n"
    return f"{head}Content-Length: {len(text)}\r\n\r\n{text}", r"HTTP/1\.1 \d{3} "
