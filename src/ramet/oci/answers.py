"""Answers of registries: bodies read with bounds, refusals put into words, httpx2's errors mapped once.

Sources: httpx2 2.16, "Exceptions"; RFC 9110, 10.2.3 (Retry-After); distribution-spec, "Error Codes".
"""

from __future__ import annotations

import email.utils
import re
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Final

import anyio
import msgspec

from ramet.errors import RametError, RegistryError
from ramet.oci.blobs import CutError, SlowError
from ramet.text import printable

if TYPE_CHECKING:
    import httpx2

_MOST_ERROR_BYTES: Final = 64 * 1024
_MOST_SHOWN: Final = 300


@dataclass(frozen=True)
class Limits:
    """Limits of time, in seconds."""

    connect_s: float = 15.0
    silence_s: float = 30.0
    """The longest time without a byte."""
    answer_s: float = 120.0
    """The longest time until an answer's head is there, beside what an upload takes at the least rate."""
    document_s: float = 300.0
    """The longest time for the whole body of a document."""
    slow_s: float = 60.0
    slow_bytes: int = 60 * 1024
    """Bytes that a blob's server must send in each `slow_s` that is spent waiting for it: 1 KiB a second."""
    busy_tries: int = 6
    busy_first_s: float = 1.0
    busy_longest_s: float = 60.0
    """The longest wait that a server may ask for, once."""


DEFAULT_LIMITS: Final = Limits()


async def chunks(response: httpx2.Response, limits: Limits = DEFAULT_LIMITS) -> AsyncIterator[bytes]:
    """Iterate over a body's bytes as they arrive.

    Raises `CutError` when they end early, `SlowError` when they come more slowly than `limits` allow.
    """
    import httpx2

    waited_s, arrived = 0.0, 0
    arriving = response.aiter_raw()
    try:
        while True:
            began = monotonic()
            try:
                chunk = await anext(arriving)
            except StopAsyncIteration:
                return
            waited_s, arrived = waited_s + monotonic() - began, arrived + len(chunk)
            yield chunk
            if waited_s >= limits.slow_s:
                if arrived < limits.slow_bytes:
                    raise SlowError(
                        f"{server_of(response.url)} sent only {arrived} bytes in {waited_s:.0f} s",
                        hint="try again later: what has arrived is kept",
                    )
                waited_s, arrived = 0.0, 0
    except (httpx2.HTTPError, httpx2.StreamError, ssl.SSLError, OSError) as error:
        raise mapped(error, server_of(response.url), inside=True) from error


@asynccontextmanager
async def mapping(url: str, *, inside: bool = False) -> AsyncIterator[None]:
    """Turn httpx2's errors into ramet's; `inside` a body, into `CutError`."""
    import httpx2

    try:
        yield
    except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, ssl.SSLError, OSError) as error:
        if isinstance(error, httpx2.DecodingError):
            raise RegistryError(f"the answer of {place_of(url)} can't be decoded") from error
        raise mapped(error, place_of(url), inside=inside) from error


_ERRNO: Final = re.compile(r"^\[Errno -?\d+\] ")


def mapped(error: Exception, server: str, *, inside: bool = False) -> RametError:
    """Return ramet's error for one of httpx2's. `server` is HOST[:PORT]."""
    import httpx2

    words = _ERRNO.sub("", _clean(str(error)))
    if inside:
        kind = "said nothing for too long" if isinstance(error, httpx2.TimeoutException) else "was cut off"
        return CutError(f"the transfer from {server} {kind}", hint="try again")
    if isinstance(error, TimeoutError):
        return CutError(f"{server} takes too long to answer", hint="try again later")
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


async def body(
    response: httpx2.Response, *, most_bytes: int, limits: Limits = DEFAULT_LIMITS
) -> bytes | None:
    """Read a whole body; None if it has more than `most_bytes`. Raises `CutError`, also for a slow one."""
    content = bytearray()
    with anyio.move_on_after(limits.document_s):
        async for chunk in chunks(response, limits):
            content += chunk
            if len(content) > most_bytes:
                return None
        return bytes(content)
    raise CutError(f"{server_of(response.url)} took more than {limits.document_s:g} s for a document")


class _Error(msgspec.Struct):
    code: str = ""
    message: str | None = None


class _Errors(msgspec.Struct):
    errors: list[_Error] | None = None


async def refusal(response: httpx2.Response) -> str:
    """Return the status and the words of a server that refused, for a message: `404, MANIFEST_UNKNOWN: …`."""
    status = _clean(f"{response.status_code} {response.reason_phrase[:80]}".strip())
    try:
        content = await body(response, most_bytes=_MOST_ERROR_BYTES)
        parsed = msgspec.json.decode(content or b"", type=_Errors)
    except Exception:
        return status  # HTML, nothing, or a cut: the status says enough
    if not parsed.errors:
        return status
    words = f"{parsed.errors[0].code}: {parsed.errors[0].message or ''}".strip(": ")
    return f"{status}, {_clean(words)}"


def busy_words(response: httpx2.Response) -> str:
    """Return a sentence's end on when a busy server may be asked again."""
    asked_s = retry_after_s(response.headers.get("retry-after"))
    return "later" if asked_s is None else f"in {asked_s:.0f} s"


def retry_after_s(value: str | None) -> float | None:
    """Read Retry-After: seconds, or a date (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value.strip()[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _clean(words: str) -> str:
    """Make one line of a server's words, which can't drive a terminal."""
    return " ".join(printable(words[:_MOST_SHOWN].encode(errors="replace")).split())


def server_of(url: httpx2.URL) -> str:
    """Return HOST[:PORT] of a URL, for a message."""
    return url.netloc.decode("ascii", errors="replace")[:_MOST_SHOWN]


def place_of(url: str) -> str:
    """Return HOST[:PORT] of a URL, for a message."""
    return _clean(re.split("[/?#]", url.partition("://")[2])[0].rpartition("@")[2]) or "the server"
