"""HTTP for registries: connections, proxies, TLS, redirects, patience with busy servers; errors mapped once.

`httpx2` is imported at the first request: it takes 0.05 to 0.25 s.

Sources: httpx2 2.16, "Clients", "SSL", "Exceptions"; RFC 9110, 10.2.3 (Retry-After), 15.4 (redirects);
distribution-spec, "Error Codes".
"""

from __future__ import annotations

import email.utils
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import anyio
import msgspec

from ramet.errors import RametError, RegistryError, UnavailableError
from ramet.oci.blobs import CutError
from ramet.oci.settings import Settings, certificate_files, proxy_for
from ramet.text import printable
from ramet.version import __version__

if TYPE_CHECKING:
    import httpx2

_MOST_REDIRECTS: Final = 8
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_BUSY: Final = frozenset({429, 500, 502, 503, 504})
_MOST_ERROR_BYTES: Final = 64 * 1024
_MOST_SHOWN: Final = 300


@dataclass(frozen=True)
class Limits:
    """Limits of time, in seconds."""

    connect_s: float = 15.0
    silence_s: float = 30.0
    """The longest time without a byte."""
    busy_tries: int = 6
    busy_first_s: float = 1.0
    busy_longest_s: float = 60.0
    """The longest wait that a server may ask for, once."""


class Transport:
    """The connections of one pull."""

    def __init__(self, settings: Settings, limits: Limits | None = None) -> None:
        self._settings = settings
        self._limits = limits or Limits()
        self._clients: dict[tuple[str | None, str], httpx2.AsyncClient] = {}

    async def close(self) -> None:
        """Close all connections."""
        with anyio.CancelScope(shield=True):
            while self._clients:
                await self._clients.popitem()[1].aclose()

    @asynccontextmanager
    async def get(
        self,
        url: str,
        *,
        headers: Mapping[str, str],
        authorization: str | None = None,
        form: Mapping[str, str] | None = None,
        patient: bool = True,
    ) -> AsyncIterator[httpx2.Response]:
        """Open the answer to a GET, or with `form` to a POST, whose body is read in the block.

        Redirects are followed; another server than the first gets no credentials. A busy server (429, 5xx) is
        asked again, after the time that it names. Raises `RegistryError` when the server can't be reached or
        redirects for ever; each other status is the caller's. What breaks inside the block is a `CutError`.
        """
        async with _mapped(url):
            response = await self._answer(url, headers, authorization, form, patient=patient)
        try:
            async with _mapped(url, inside=True):
                yield response
        finally:
            with anyio.CancelScope(shield=True), suppress(Exception):
                await response.aclose()  # its connection is of no use any more then

    async def _answer(
        self,
        url: str,
        headers: Mapping[str, str],
        authorization: str | None,
        form: Mapping[str, str] | None,
        *,
        patient: bool,
    ) -> httpx2.Response:
        pause_s = self._limits.busy_first_s
        for left in range(self._limits.busy_tries if patient else 1, 0, -1):
            response = await self._followed(url, headers, authorization, form)
            if response.status_code not in _BUSY or left == 1:
                return response
            asked_s = _retry_after_s(response.headers.get("retry-after"))
            if asked_s is not None and asked_s > self._limits.busy_longest_s:
                return response  # the caller says for how long
            await response.aclose()
            await anyio.sleep(pause_s if asked_s is None else asked_s)
            pause_s = min(pause_s * 2, self._limits.busy_longest_s)
        raise AssertionError("the last answer is returned")

    async def _followed(
        self, url: str, headers: Mapping[str, str], authorization: str | None, form: Mapping[str, str] | None
    ) -> httpx2.Response:
        import httpx2

        first = here = httpx2.URL(url)
        for _ in range(_MOST_REDIRECTS + 1):
            given = dict(headers)
            if authorization is not None and _origin(here) == _origin(first):
                given["Authorization"] = authorization
            client = await self._client(here)
            method = "GET" if form is None else "POST"
            request = client.build_request(method, here, headers=given, data=form)
            response = await _sent(client, request)
            place = response.headers.get("location")
            if response.status_code not in _REDIRECTS or place is None:
                return response
            await response.aclose()
            there = here.join(place)
            if form is not None:
                raise RegistryError(
                    f"{_server(here)} redirects a request for a token, which ramet doesn't follow"
                )
            if there.scheme not in ("http", "https") or not there.host:
                raise RegistryError(f"{_server(here)} redirects to something that is no server")
            if here.scheme == "https" and there.scheme == "http":
                raise RegistryError(f"{_server(here)} redirects to {_server(there)}, without TLS")
            here = there
        raise RegistryError(f"{_server(first)} redirects for ever", hint="the registry is misconfigured")

    async def _client(self, url: httpx2.URL) -> httpx2.AsyncClient:
        import httpx2

        port = url.port or (443 if url.scheme == "https" else 80)
        proxy = proxy_for(url.scheme, url.host, port)
        authority = url.netloc.decode("ascii")
        certificates = tuple(map(str, certificate_files(authority)))
        key = (proxy, authority if certificates else "")
        if key not in self._clients:
            context = self._context(certificates)
            limits = self._limits
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


async def _sent(client: httpx2.AsyncClient, request: httpx2.Request) -> httpx2.Response:
    """Send a request. A cancellation closes a connection whose TLS handshake it interrupts.

    httpcore2 2.16 leaves that connection to the garbage collector, so its `trace` extension is asked for it.
    """
    opened: list[Any] = []

    async def trace(event: str, details: dict[str, Any]) -> None:
        if event.endswith("connect_tcp.complete"):
            opened.append(details["return_value"])

    request.extensions = {**request.extensions, "trace": trace}
    try:
        return await client.send(request, stream=True)
    except anyio.get_cancelled_exc_class():
        with anyio.CancelScope(shield=True):
            for stream in opened:
                with suppress(Exception):
                    await stream.aclose()  # it may be closed already
        raise


async def chunks(response: httpx2.Response) -> AsyncIterator[bytes]:
    """Iterate over a body's bytes as they arrive. Raises `CutError` when they end early."""
    import httpx2

    try:
        async for chunk in response.aiter_raw():
            yield chunk
    except (httpx2.HTTPError, httpx2.StreamError, ssl.SSLError, OSError) as error:
        raise mapped(error, _server(response.url), inside=True) from error


@asynccontextmanager
async def _mapped(url: str, *, inside: bool = False) -> AsyncIterator[None]:
    """Turn httpx2's errors into ramet's; `inside` a body, into `CutError`."""
    import httpx2

    try:
        yield
    except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, ssl.SSLError, OSError) as error:
        if isinstance(error, httpx2.DecodingError):
            raise RegistryError(f"the answer of {_place(url)} can't be decoded") from error
        raise mapped(error, _place(url), inside=inside) from error


def mapped(error: Exception, server: str, *, inside: bool = False) -> RametError:
    """Return ramet's error for one of httpx2's. `server` is HOST[:PORT]."""
    import httpx2

    words = printable(str(error).encode(errors="replace"))[:_MOST_SHOWN]
    if inside:
        kind = "said nothing for too long" if isinstance(error, httpx2.TimeoutException) else "was cut off"
        return CutError(f"the transfer from {server} {kind}", hint="try again")
    if isinstance(error, httpx2.ConnectTimeout):
        return RegistryError(
            f"{server} doesn't answer",
            hint="check its name, the network, and HTTPS_PROXY if there is a proxy",
        )
    if isinstance(error, httpx2.TimeoutException):
        return CutError(f"{server} said nothing for too long", hint="try again later")
    if isinstance(error, httpx2.ProxyError):
        return RegistryError(
            f"the proxy before {server} refuses: {words}", hint="check HTTPS_PROXY and NO_PROXY"
        )
    if "CERTIFICATE_VERIFY_FAILED" in words or "certificate verify failed" in words:
        return RegistryError(
            f"{server} has a certificate that this machine doesn't trust: {words}",
            hint="if it is your company's, set RAMET_REGISTRY_CA to the PEM file of its authority",
        )
    if isinstance(error, httpx2.ConnectError) and ("SSL" in words or "TLS" in words):
        return RegistryError(
            f"{server} doesn't speak TLS as it should: {words}",
            hint="for a registry without TLS, name it in RAMET_PLAIN_REGISTRIES",
        )
    if isinstance(error, httpx2.ConnectError):
        return RegistryError(f"{server} can't be reached: {words}", hint="check its name and the network")
    if isinstance(error, httpx2.UnsupportedProtocol | httpx2.InvalidURL | httpx2.LocalProtocolError):
        return RegistryError(f"{server} can't be asked: {words}")
    if isinstance(error, httpx2.NetworkError | httpx2.RemoteProtocolError | OSError):
        return CutError(f"the connection to {server} broke: {words}", hint="try again later")
    return RegistryError(f"{server} can't be asked: {words or type(error).__name__}")


async def body(response: httpx2.Response, *, most_bytes: int) -> bytes | None:
    """Read a whole body; None if it has more than `most_bytes`."""
    content = bytearray()
    async for chunk in chunks(response):
        content += chunk
        if len(content) > most_bytes:
            return None
    return bytes(content)


class _Error(msgspec.Struct):
    code: str = ""
    message: str | None = None


class _Errors(msgspec.Struct):
    errors: list[_Error] | None = None


async def refusal(response: httpx2.Response) -> str:
    """Return the status and the words of a server that refused, for a message: `404, MANIFEST_UNKNOWN: …`."""
    status = f"{response.status_code} {response.reason_phrase}".strip()
    try:
        content = await body(response, most_bytes=_MOST_ERROR_BYTES)
        parsed = msgspec.json.decode(content or b"", type=_Errors)
    except Exception:
        return status  # HTML, nothing, or a cut: the status says enough
    if not parsed.errors:
        return status
    words = f"{parsed.errors[0].code}: {parsed.errors[0].message or ''}".strip(": ")
    return f"{status}, {printable(words[:_MOST_SHOWN].encode(errors='replace'))}"


def busy_words(response: httpx2.Response) -> str:
    """Return a sentence's end on when a busy server may be asked again."""
    asked_s = _retry_after_s(response.headers.get("retry-after"))
    return "later" if asked_s is None else f"in {asked_s:.0f} s"


def _retry_after_s(value: str | None) -> float | None:
    """Read Retry-After: seconds, or a date (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value.strip()[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _origin(url: httpx2.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _server(url: httpx2.URL) -> str:
    return url.netloc.decode("ascii", errors="replace")[:_MOST_SHOWN]


def _place(url: str) -> str:
    return url.partition("://")[2].partition("/")[0].rpartition("@")[2] or "the server"
