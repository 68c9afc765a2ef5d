"""The settings in effect for registries, for `ramet doctor`. No server is asked."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from urllib.parse import urlsplit

from ramet.errors import RametError
from ramet.oci import credentials
from ramet.oci.reference import DEFAULT_REGISTRY
from ramet.oci.settings import Settings, endpoints, host_of, proxy_for
from ramet.system.doctor import Finding
from ramet.text import printable

_TLS_PORT = 443


def registries_finding() -> Finding:
    """Describe the way to Docker Hub and other registries, and what is wrong with the settings."""
    try:
        settings = Settings.from_environment()
        servers = endpoints(DEFAULT_REGISTRY, settings)
        if settings.authority is not None:
            # Public certificates alone; the trust of the system is the system's.
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=settings.authority)
    except RametError as error:
        return Finding("registries", None, error.message, error.hint)
    except OSError as error:  # ssl.SSLError among them
        return Finding(
            "registries",
            None,
            f"RAMET_REGISTRY_CA is {settings.authority}, which can't be read: {error.strerror or error}",
            "give a PEM file with -----BEGIN CERTIFICATE-----, or unset it: every pull fails so",
        )
    parts = [*_way(servers[-1].authority), *_settings(settings)]
    return Finding("registries", True, _clean("; ".join(parts)))


def _way(server: str) -> Iterator[str]:
    proxy = proxy_for("https", host_of(server), _TLS_PORT)
    if proxy is None:
        yield "no proxy"
        return
    try:
        place = urlsplit(proxy)
        yield f"through {place.scheme}://{place.netloc.rpartition('@')[2]}"  # it may have a password
    except ValueError:
        yield "through a proxy that is no address"


def _settings(settings: Settings) -> Iterator[str]:
    if settings.mirror is not None:
        yield f"Docker Hub's mirror {settings.mirror.rpartition('@')[2]}"
    if settings.authority is not None:
        yield f"certificates of {settings.authority} trusted"
    if settings.plain:
        yield f"without TLS: {', '.join(sorted(settings.plain))}"
    try:
        files = [str(path) for path in credentials.files() if path.is_file()]
    except (RametError, OSError):
        files = []
    yield f"logins in {', '.join(files)}" if files else "no logins"


def _clean(text: str) -> str:
    return " ".join(printable(text.encode(errors="replace")).split())
