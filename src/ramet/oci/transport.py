"""HTTP for registries: connections, proxies, TLS, redirects, patience with busy servers.

`httpx2` is imported at the first request: it takes 0.05 to 0.25 s.

Sources: httpx2 2.16, "Clients", "SSL", "Extensions" (trace); RFC 9110, 15.4 (redirects).
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import anyio

from ramet.errors import RegistryError, UnavailableError
from ramet.oci.answers import DEFAULT_LIMITS, Limits, mapping, retry_after_s, server_of
from ramet.oci.places import forbidden, is_near, origin, parsed, redirected
from ramet.oci.settings import Settings, certificate_files, proxy_for
from ramet.version import __version__

if TYPE_CHECKING:
    import httpx2

_MOST_REDIRECTS: Final = 8
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_KEEPING_REDIRECTS: Final = frozenset({307, 308})
"""Those that a request with a content may follow: the others turn it into a GET."""
_MOST_DRAINED_BYTES: Final = 16 * 1024
_DRAIN_S: Final = 1.0
_BUSY: Final = frozenset({429, 500, 502, 503, 504})


@dataclass(frozen=True)
class Content:
    """The content of a request. `open` begins it anew: a request may be sent more than once."""

    size_bytes: int
    open: Callable[[], AsyncGenerator[bytes, None]]
    media_type: str = "application/octet-stream"

    @classmethod
    def of(cls, data: bytes, media_type: str) -> Content:
        """Make the content of bytes in memory."""

        async def whole() -> AsyncGenerator[bytes, None]:
            yield data

        return cls(len(data), whole, media_type)


class Transport:
    """The connections of one pull or push."""

    def __init__(self, settings: Settings, limits: Limits | None = None) -> None:
        self.limits = limits or DEFAULT_LIMITS
        self._settings = settings
        self._clients: dict[tuple[str | None, str, bool], httpx2.AsyncClient] = {}
        self._near: set[tuple[str, str, int | None]] = set()
        """Origins that turned out to be on this machine or its link."""

    async def close(self) -> None:
        """Close all connections."""
        with anyio.CancelScope(shield=True):
            while self._clients:
                await self._clients.popitem()[1].aclose()

    @asynccontextmanager
    async def ask(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        authorization: str | None = None,
        content: Content | None = None,
        home: str | None = None,
        is_patient: bool = True,
    ) -> AsyncIterator[httpx2.Response]:
        """Open the answer to a request, whose body is read in the block.

        Redirects are followed; another server than the first gets no credentials. `home` is a URL of the
        registry that this is asked for: to where it leads, be it a redirect, a token server or a place for
        uploads, may be this machine or its link only if the registry is there too. A busy server (429, 5xx)
        is asked again after the time that it names, if `is_patient`.

        Raises `RegistryError` when the server can't be reached, redirects for ever or to a forbidden place;
        each other status is the caller's. What breaks inside the block is a `CutError`.
        """
        async with mapping(url):
            response = await self._answer(
                _Request(method, dict(headers), authorization, content), url, home, is_patient=is_patient
            )
        try:
            async with mapping(url, inside=True):
                yield response
            await _drain(response)
        finally:
            with anyio.CancelScope(shield=True), suppress(Exception):
                await response.aclose()  # its connection is of no use any more then

    async def _answer(
        self, request: _Request, url: str, home: str | None, *, is_patient: bool
    ) -> httpx2.Response:
        pause_s = self.limits.busy_first_s
        for left in range(self.limits.busy_tries if is_patient else 1, 0, -1):
            response = await self._followed(request, url, home)
            if response.status_code not in _BUSY or left == 1:
                return response
            asked_s = retry_after_s(response.headers.get("retry-after"))
            if asked_s is not None and asked_s > self.limits.busy_longest_s:
                return response  # the caller says for how long
            await _drain(response)
            await anyio.sleep(pause_s if asked_s is None else asked_s)
            pause_s = min(pause_s * 2, self.limits.busy_longest_s)
        raise AssertionError("the last answer is returned")

    async def _followed(self, request: _Request, url: str, home: str | None) -> httpx2.Response:

        first = here = parsed(url)
        registry = None if home is None else origin(parsed(home))
        for _ in range(_MOST_REDIRECTS + 1):
            response = await self._sent(request, here, registry, is_first=origin(here) == origin(first))
            place = response.headers.get("location")
            if response.status_code not in _REDIRECTS or place is None:
                return response
            await _drain(response)
            if request.content is not None and response.status_code not in _KEEPING_REDIRECTS:
                raise RegistryError(
                    f"{server_of(here)} redirects a {request.method} with {response.status_code},"
                    " which can't be followed"
                )
            here = redirected(here, place)
        raise RegistryError(f"{server_of(first)} redirects for ever", hint="the registry is misconfigured")

    async def _sent(
        self,
        request: _Request,
        url: httpx2.URL,
        registry: tuple[str, str, int | None] | None,
        *,
        is_first: bool,
    ) -> httpx2.Response:
        given = dict(request.headers)
        if request.authorization is not None and is_first:
            given["Authorization"] = request.authorization
        if request.content is not None:
            given |= {
                "Content-Length": str(request.content.size_bytes),
                "Content-Type": request.content.media_type,
            }
        port = url.port or (443 if url.scheme == "https" else 80)
        proxy = proxy_for(url.scheme, url.host, port)
        is_led = registry is not None and origin(url) != registry and registry not in self._near
        if is_led and is_near(url.host):
            raise forbidden(server_of(url))

        def connected(address: str) -> None:
            if proxy is None and is_near(address):
                if is_led:
                    raise forbidden(server_of(url))
                self._near.add(origin(url))

        client = await self._client(url, proxy, is_led=is_led)
        content = None if request.content is None else request.content.open()
        built = client.build_request(request.method, url, headers=given, content=content)
        size_bytes = 0 if request.content is None else request.content.size_bytes
        limits = self.limits
        with anyio.fail_after(limits.answer_s + size_bytes * limits.slow_s / limits.slow_bytes):
            try:
                return await _send(client, built, connected)
            finally:
                if content is not None:
                    await content.aclose()  # of an upload that ended early

    async def _client(self, url: httpx2.URL, proxy: str | None, *, is_led: bool) -> httpx2.AsyncClient:
        """Return the client for a server. Where a registry led us, only connections that were checked are."""
        import httpx2

        authority = url.netloc.decode("ascii")
        certificates = tuple(map(str, certificate_files(authority)))
        key = (proxy, authority if certificates else "", is_led)
        if key not in self._clients:
            context = self._context(certificates)
            limits = self.limits
            made = None if proxy is None else _proxy(proxy, context)
            self._clients[key] = httpx2.AsyncClient(
                verify=context,
                proxy=made,
                trust_env=False,  # `proxy_for` reads the proxies, and ~/.netrc isn't for registries
                timeout=httpx2.Timeout(limits.silence_s, connect=limits.connect_s, pool=None),
                headers={"User-Agent": f"ramet/{__version__}", "Accept-Encoding": "identity"},
            )
        return self._clients[key]

    def _context(self, certificates: tuple[str, ...]) -> ssl.SSLContext:
        import truststore

        context = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        chosen = [str(self._settings.authority)] if self._settings.authority is not None else []
        for path in [*chosen, *certificates]:
            try:
                context.load_verify_locations(cafile=path)
            except OSError as error:  # ssl.SSLError among them
                raise UnavailableError(
                    f"the certificates in {path} can't be read: {error.strerror or error}",
                    hint="give a PEM file with -----BEGIN CERTIFICATE-----",
                ) from error
        return context


@dataclass(frozen=True)
class _Request:
    method: str
    headers: dict[str, str]
    authorization: str | None
    content: Content | None


def _proxy(url: str, context: ssl.SSLContext) -> httpx2.Proxy:
    """Make httpx2's proxy. Its URL may have a password, so that no message shows it."""
    import httpx2

    try:
        made = httpx2.Proxy(url)
    except (ValueError, httpx2.InvalidURL):
        made = None
    if made is None or made.url.scheme not in ("http", "https") or not made.url.host:
        raise UnavailableError(
            "the proxy that HTTPS_PROXY, HTTP_PROXY or ALL_PROXY names is no HTTP proxy",
            hint="set it to http://HOST:PORT, or NO_PROXY to the registry",
        )
    if made.url.scheme == "https":
        made.ssl_context = context  # httpcore2 refuses one for a proxy without TLS
    return made


async def _send(
    client: httpx2.AsyncClient, request: httpx2.Request, connected: Callable[[str], None]
) -> httpx2.Response:
    """Send a request, and tell `connected`, which may refuse, the address of each new connection.

    A cancellation closes a connection whose TLS handshake it interrupts: httpcore2 2.16 leaves that one to
    the garbage collector, so its `trace` extension is asked for it.
    """
    opened: list[Any] = []

    async def trace(event: str, details: dict[str, Any]) -> None:
        if event.endswith("connect_tcp.complete"):
            opened.append(details["return_value"])
            address = details["return_value"].get_extra_info("server_addr")
            if address:
                connected(str(address[0]))

    request.extensions = {**request.extensions, "trace": trace}
    try:
        return await client.send(request, stream=True)
    except ssl.SSLError:
        raise  # a certificate that is refused is a ValueError, too
    except ValueError as error:
        # httpx2 looks at a redirect's place even if it follows none, and lets idna's errors through.
        raise RegistryError(f"{server_of(request.url)} redirects to something that is no address") from error
    except (anyio.get_cancelled_exc_class(), RegistryError):
        with anyio.CancelScope(shield=True):
            for stream in opened:
                with suppress(Exception):
                    await stream.aclose()  # it may be closed already
        raise


async def _drain(response: httpx2.Response) -> None:
    """End an answer; the rest of a short body is read, so that its connection is used again."""
    length = response.headers.get("content-length", "")
    is_short = response.request.method == "HEAD" or (
        length.isdecimal() and len(length) <= 5 and int(length) <= _MOST_DRAINED_BYTES
    )
    if is_short and not response.is_stream_consumed:
        # Nobody wants that body: without its end the connection is closed, and that is all.
        with suppress(Exception), anyio.move_on_after(_DRAIN_S):
            async for _ in response.aiter_raw():
                pass
    with suppress(Exception):
        await response.aclose()  # it may be closed already
