"""Where a registry may lead its clients: redirects, token servers, places for uploads.

Sources: RFC 9110, 15.4 (redirects); RFC 3927 and RFC 4291, 2.5.6 (link-local addresses).
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final

from ramet.errors import RegistryError
from ramet.oci.answers import server_of
from ramet.oci.settings import is_loopback

if TYPE_CHECKING:
    import httpx2

_METADATA: Final = frozenset({"100.100.100.200", "fd00:ec2::254"})
"""Metadata services of clouds that aren't link-local."""


def redirected(here: httpx2.URL, place: str) -> httpx2.URL:
    """Return where a server leads. Raises `RegistryError` for what is no server, and for a way out of TLS."""
    import httpx2

    try:
        # Whose user and password these are, nobody knows.
        there = here.join(place).copy_with(userinfo=b"")
        there.host.encode("idna")
    except (ValueError, httpx2.InvalidURL) as error:
        raise RegistryError(f"{server_of(here)} redirects to something that is no address") from error
    if there.scheme not in ("http", "https") or not there.host:
        raise RegistryError(f"{server_of(here)} redirects to something that is no server")
    if here.scheme == "https" and there.scheme == "http":
        raise RegistryError(
            f"{server_of(here)} redirects to {server_of(there)}, without TLS",
            hint="a proxy before the registry may not tell it that TLS is used (X-Forwarded-Proto)",
        )
    return there


def is_same_server(url: str, other: str) -> bool:
    """Tell whether two URLs have the same scheme, host and port. Raises `RegistryError` for no URL."""
    return origin(parsed(url)) == origin(parsed(other))


def parsed(url: str) -> httpx2.URL:
    """Parse a URL that a registry gave. Raises `RegistryError` for what is none."""
    import httpx2

    try:
        made = httpx2.URL(url)
        made.host.encode("idna")
    except (ValueError, httpx2.InvalidURL) as error:
        raise RegistryError("the registry names a place that is no address") from error
    return made


def is_near(address: str) -> bool:
    """Tell whether an address is this machine, its link, or a cloud's metadata service."""
    if is_loopback(address) or address in _METADATA:
        return True
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    if mapped is not None:
        return is_near(str(mapped))
    return parsed.is_loopback or parsed.is_link_local or parsed.is_unspecified


def forbidden(server: str) -> RegistryError:
    """Make the error for a way that only a registry on this machine may lead."""
    return RegistryError(
        f"the registry leads to {server}, which is this machine, its link or a cloud's metadata service",
        hint="only a registry on this machine may lead there",
    )


def origin(url: httpx2.URL) -> tuple[str, str, int | None]:
    """Return what makes two URLs the same server: scheme, host, port."""
    return url.scheme, url.host, url.port
