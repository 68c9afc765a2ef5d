"""Settings of the registry client, and where a registry's name leads.

Sources: Go's `net/http.ProxyFromEnvironment` and `golang.org/x/net/http/httpproxy` for the proxy
variables, as Docker and podman read them; dockerd(8), "Insecure registries"; Docker's `certs.d`.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ramet import config
from ramet.errors import UsageError
from ramet.oci.reference import DEFAULT_REGISTRY

_DEFAULT_HOST: Final = "registry-1.docker.io"
_CERTIFICATES: Final = (Path("/etc/docker/certs.d"), Path("/etc/containers/certs.d"))


@dataclass(frozen=True)
class Settings:
    """The settings of a user."""

    mirror: str | None = None
    """`[http://|https://]HOST[:PORT]`, asked before the default registry and for it alone."""
    authority: Path | None = None
    """A PEM file of certificates that are trusted beside the system's."""
    plain: frozenset[str] = frozenset()
    """Registries, `HOST[:PORT]`, that are spoken to without TLS. Loopback needs no mention."""

    @classmethod
    def from_environment(cls) -> Settings:
        """Read `RAMET_REGISTRY_MIRROR`, `RAMET_REGISTRY_CA` and `RAMET_PLAIN_REGISTRIES` (commas between)."""
        authority = config.text("RAMET_REGISTRY_CA")
        return cls(
            mirror=config.text("RAMET_REGISTRY_MIRROR"),
            authority=config.absolute(authority, meaning="RAMET_REGISTRY_CA") if authority else None,
            plain=frozenset(_plain_registries(config.text("RAMET_PLAIN_REGISTRIES") or "")),
        )


def _plain_registries(text: str) -> Iterator[str]:
    """Yield registries from a list with commas or spaces. Raises `UsageError` for what is no address."""
    for word in text.replace(",", " ").split():
        name = word.removeprefix("http://").rstrip("/")
        if not name or "/" in name:
            raise UsageError(
                f"RAMET_PLAIN_REGISTRIES names {word!r}, which is no registry without TLS",
                hint="write HOST[:PORT], with commas between several",
            )
        yield name


@dataclass(frozen=True)
class Endpoint:
    """A server that speaks for a registry."""

    registry: str
    """The registry in references, which credentials are kept for."""
    authority: str
    """HOST[:PORT] of the server."""
    schemes: tuple[str, ...]
    """`https`, or for loopback both: TLS is tried first, as Docker does."""
    is_mirror: bool = False


def endpoints(registry: str, settings: Settings) -> list[Endpoint]:
    """Return the servers to ask, in this order. Raises `UsageError` for a mirror that is no address."""
    if registry != DEFAULT_REGISTRY:
        return [Endpoint(registry, registry, _schemes(registry, settings))]
    servers = [Endpoint(registry, _DEFAULT_HOST, ("https",))]
    if settings.mirror is not None:
        scheme, separator, rest = settings.mirror.rpartition("://")
        name = rest.rstrip("/")
        if not name or "/" in name or scheme not in ("", "http", "https"):
            raise UsageError(
                f"RAMET_REGISTRY_MIRROR is {settings.mirror!r}, which is no server",
                hint="write https://HOST[:PORT]",
            )
        schemes = (scheme,) if separator else _schemes(name, settings)
        servers.insert(0, Endpoint(name, name, schemes, is_mirror=True))
    return servers


def _schemes(authority: str, settings: Settings) -> tuple[str, ...]:
    if authority in settings.plain:
        return ("http",)
    return ("https", "http") if is_loopback(host_of(authority)) else ("https",)


def host_of(authority: str) -> str:
    """Return the host of `HOST[:PORT]`, an IPv6 address without its brackets."""
    if authority.startswith("["):
        return authority[1:].partition("]")[0]
    return authority.partition(":")[0]


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine, by its name or address alone: no name is resolved."""
    if host == "localhost" or host.endswith(".localhost"):
        return True  # RFC 6761, 6.3
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def proxy_for(scheme: str, host: str, port: int) -> str | None:
    """Return the URL of the proxy for a server, from the environment; None for a direct connection.

    `HTTPS_PROXY` or `HTTP_PROXY`, else `ALL_PROXY`, in capitals or not. `NO_PROXY` lists domains (with all
    below them), addresses, networks (`10.0.0.0/8`), each with a port or without, or `*`. Loopback has none.
    """
    if is_loopback(host) or _is_excepted(host.lower(), port):
        return None
    chosen = _variable(f"{scheme}_proxy") or _variable("all_proxy")
    if chosen is None:
        return None
    return chosen if "://" in chosen else f"http://{chosen}"


def _variable(name: str) -> str | None:
    return os.environ.get(name) or os.environ.get(name.upper()) or None


def _is_excepted(host: str, port: int) -> bool:
    for entry in (_variable("no_proxy") or "").replace(",", " ").lower().split():
        if entry == "*":
            return True
        name, colon, digits = entry.rpartition(":")
        if colon and digits.isdigit() and (":" not in name or name.endswith("]")):
            if int(digits) != port:
                continue
            entry = name
        entry = entry.strip("[]")
        try:
            if ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False):
                return True
        except ValueError:
            domain = entry.removeprefix("*").removeprefix(".")
            if domain and (
                host.endswith(f".{domain}") or (host == domain and not entry.startswith((".", "*")))
            ):
                return True
    return False


def certificate_files(authority: str) -> list[Path]:
    """Return the certificates that Docker or podman trust for a registry: `certs.d/HOST:PORT/*.crt`."""
    found: list[Path] = []
    for directory in _CERTIFICATES:
        try:
            found += sorted((directory / authority).glob("*.crt"))
        except OSError:
            continue  # not readable: the system's certificates are all there is then
    return found
