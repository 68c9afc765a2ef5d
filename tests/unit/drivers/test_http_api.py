"""Leases of a VMM's HTTP API: its words, and the errors of a server that answers as no VMM should."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import anyio
import pytest

from ramet.drivers import http_api
from ramet.drivers.cloud_hypervisor.api import api as cloud_hypervisor
from ramet.drivers.firecracker.api import api as firecracker
from ramet.drivers.http_api import SOCKET, HttpApi, step
from ramet.errors import VmmError, VmmTimeoutError

pytestmark = pytest.mark.anyio

Lease = Callable[..., AbstractAsyncContextManager[HttpApi]]
HEAD = b"HTTP/1.1 %d Status\r\nServer: API\r\nConnection: keep-alive\r\n"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def answer(status: int, content: bytes = b"") -> bytes:
    """An answer as micro_http gives it: one of 204 has no length."""
    length = b"" if status == 204 else b"Content-Length: %d\r\n" % len(content)
    return HEAD % status + length + b"\r\n" + content


@asynccontextmanager
async def serving(
    directory: Path, reply: Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]
) -> AsyncIterator[list[bytes]]:
    """Serve the API socket in `directory`. Yields the requests' first lines."""
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    int(line.split(b":")[1])
                    for line in head.split(b"\r\n")
                    if line.lower().startswith(b"content-length:")
                )
                seen.append(head.split(b"\r\n")[0] + b" " + await reader.readexactly(length))
                await reply(head, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_unix_server(serve, directory / SOCKET)
    try:
        yield seen
    finally:
        server.close()


def always(content: bytes) -> Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]:
    """Reply the same to every request."""

    async def reply(_head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(content)

    return reply


async def test_requests_of_a_lease_share_a_connection_and_answers_are_objects(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, always(answer(200, b'{"state":"Running"}'))) as seen,
        cloud_hypervisor(tmp_path, who="vm") as vmm,
    ):
        assert await vmm.call("GET", "/api/v1/vm.info") == {"state": "Running"}
        assert await vmm.call("PUT", "/a", {"resume": True}) == {"state": "Running"}
    assert seen == [b"GET /api/v1/vm.info HTTP/1.1 ", b'PUT /a HTTP/1.1 {"resume":true}']


async def test_an_answer_without_content_is_empty(tmp_path: Path) -> None:
    async with serving(tmp_path, always(answer(204))), firecracker(tmp_path, who="vm") as vmm:
        for _ in range(2):
            assert await vmm.call("PUT", "/x") == {}


@pytest.mark.parametrize(
    ("lease", "content", "words"),
    [
        (firecracker, b'{"fault_message":"no such file"}', "vm: Firecracker refused PUT /x: no such file"),
        (firecracker, b"", "vm: Firecracker refused PUT /x: without a word"),
        (
            cloud_hypervisor,
            b'["Error from API","The VM could not be paused"]',
            "vm: Cloud Hypervisor refused PUT /x: Error from API: The VM could not be paused",
        ),
        (cloud_hypervisor, b"no JSON", "vm: Cloud Hypervisor refused PUT /x: no JSON"),
    ],
)
async def test_a_refusal_has_the_vmms_own_words_and_leaves_the_lease_usable(
    tmp_path: Path, lease: Lease, content: bytes, words: str
) -> None:
    async with serving(tmp_path, always(answer(500, content))), lease(tmp_path, who="vm") as vmm:
        with pytest.raises(VmmError) as caught:
            await vmm.call("PUT", "/x")
        assert caught.value.message == words
        refused = await vmm.request("PUT", "/x")
        assert (refused.status, refused.content, refused.is_refusal) == (500, content, True)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"not HTTP\r\n\r\n", "isn't HTTP"),
        (answer(200, b"[1]"), "isn't JSON"),
        (answer(200, b"x" * 100_000), "doesn't end"),
    ],
)
async def test_an_answer_of_another_kind_is_an_error(tmp_path: Path, content: bytes, why: str) -> None:
    async with serving(tmp_path, always(content)), cloud_hypervisor(tmp_path, who="vm") as vmm:
        with pytest.raises(VmmError, match=why):
            await vmm.call("GET", "/x")


async def test_a_server_that_goes_away_or_is_not_there_is_an_error(tmp_path: Path) -> None:
    async def leave(_head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with cloud_hypervisor(tmp_path, who="vm") as vmm:
        with pytest.raises(VmmError, match="vm: Cloud Hypervisor's API doesn't answer"):
            await vmm.call("GET", "/x")
        async with serving(tmp_path, leave):
            with pytest.raises(VmmError, match="vm: Cloud Hypervisor went away during GET /x"):
                await vmm.call("GET", "/x")


async def test_a_server_that_hangs_is_a_timeout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_api, "ANSWER_LIMIT_S", 0.1)
    async with serving(tmp_path, always(b"")):
        async with cloud_hypervisor(tmp_path, who="vm") as vmm:
            with pytest.raises(VmmTimeoutError, match=r"didn't answer within 0\.2 s"):
                await vmm.call("GET", "/x", longer_s=0.1)
        with pytest.raises(VmmTimeoutError, match="took over"):
            async with cloud_hypervisor(tmp_path, who="vm", limit_s=0.1):
                await anyio.sleep_forever()


def test_a_step_is_a_whole_request_with_or_without_a_body() -> None:
    assert step("PUT", "/x") == (
        "PUT /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n",
        r"HTTP/1\.1 \d{3} ",
    )
    assert step("PATCH", "/vm", {"a": 1})[0].endswith(
        'Content-Type: application/json\r\nContent-Length: 7\r\n\r\n{"a":1}'
    )
