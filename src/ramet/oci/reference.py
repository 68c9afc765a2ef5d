"""References to images, as Docker writes them: `python`, `python:3.13`, `host:5000/team/x@sha256:…`.

Sources: the grammar of github.com/distribution/reference (`regexp.go`, `normalize.go`); OCI
distribution-spec, "Pulling manifests" (names, tags).
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from ramet.errors import UsageError
from ramet.oci.digests import Digest

DEFAULT_REGISTRY: Final = "docker.io"
DEFAULT_TAG: Final = "latest"
_OTHER_DEFAULT: Final = "index.docker.io"
_OFFICIAL: Final = "library/"
_LONGEST_NAME: Final = 255
_LONGEST: Final = 1024
"""A name, a tag of 128 and a sha512 digest have 518 characters."""

_LABEL: Final = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_HOST: Final = re.compile(rf"({_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::([0-9]{{1,5}}))?", re.ASCII)
_COMPONENT: Final = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*", re.ASCII)
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", re.ASCII)
_ID: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Reference:
    """An image in a registry. With a digest, the tag only says what the digest was called."""

    registry: str
    """The registry's name, with its port if one was written: `docker.io`, `localhost:5000`."""
    repository: str
    """The path in the registry: `library/python`."""
    tag: str | None = None
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read a reference, with Docker's defaults for the registry, `library/` and the tag.

        Raises `UsageError`, which says which part is wrong.
        """
        if len(text) > _LONGEST:
            raise _illegal(f"{text[:40]}…", f"it has more than {_LONGEST} characters")
        name, at, digest_text = text.partition("@")
        digest = Digest.parse(digest_text) if at else None
        name, tag = _split_tag(name)
        if not name:
            raise _illegal(text, "it has no name")
        if _ID.fullmatch(name):
            raise _illegal(
                text, "64 hexadecimal digits are the id of an image, not a name", hint="write NAME@sha256:…"
            )
        if tag is not None and not _TAG.fullmatch(tag):
            raise _illegal(text, f"{tag!r} is no tag: letters, digits, `_`, `.` and `-`, 128 at most")
        registry, repository = _split_registry(name, text)
        for component in repository.split("/"):
            _require_component(component, text)
        if len(registry) + 1 + len(repository) > _LONGEST_NAME:
            raise _illegal(text, f"its name has more than {_LONGEST_NAME} characters")
        if tag is None and digest is None:
            tag = DEFAULT_TAG
        return cls(registry, repository, tag, digest)

    @property
    def wanted(self) -> str:
        """The digest, else the tag: what the registry is asked for."""
        return str(self.digest) if self.digest is not None else self.tag or DEFAULT_TAG

    @property
    def familiar(self) -> str:
        """The reference as people write it: without the default registry, `library/` and the digest's tag."""
        name = f"{self.registry}/{self.repository}"
        if self.registry == DEFAULT_REGISTRY and not _is_registry(self.repository.partition("/")[0]):
            name = self.repository
            short = name.removeprefix(_OFFICIAL)
            # `library/a/b` and `library/localhost` are names that would be read otherwise when cut.
            if "/" not in short and short != "localhost" and not _ID.fullmatch(short):
                name = short
        return f"{name}@{self.digest}" if self.digest is not None else f"{name}:{self.tag}"

    def with_digest(self, digest: Digest) -> Reference:
        """Return the reference to exactly that content."""
        return Reference(self.registry, self.repository, self.tag, digest)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag is not None else ""
        digest = f"@{self.digest}" if self.digest is not None else ""
        return f"{self.registry}/{self.repository}{tag}{digest}"


def _split_tag(name: str) -> tuple[str, str | None]:
    """Split the tag off: what follows the last colon, unless a slash follows the colon (a port)."""
    head, colon, tag = name.rpartition(":")
    return (head, tag) if colon and "/" not in tag and not tag.endswith("]") else (name, None)


def _split_registry(name: str, text: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    if not (slash and _is_registry(first)):
        first, rest = DEFAULT_REGISTRY, name
    if first == _OTHER_DEFAULT:
        first = DEFAULT_REGISTRY
    _require_registry(first, text)
    if first == DEFAULT_REGISTRY and "/" not in rest:
        rest = _OFFICIAL + rest
    return first, rest


def _is_registry(first: str) -> bool:
    """Tell whether the part before the first slash names a registry (`normalize.go`, splitDockerDomain)."""
    return "." in first or ":" in first or first == "localhost" or first.lower() != first


def _require_registry(registry: str, text: str) -> None:
    match = _HOST.fullmatch(registry)
    if match is None:
        raise _illegal(text, f"{registry!r} is no host name with or without a port")
    host, port = match.groups()
    if port is not None and not 0 < int(port) < 65536:
        raise _illegal(text, f"there is no port {port}")
    if host.startswith("["):
        try:
            ipaddress.IPv6Address(host[1:-1])
        except ValueError:
            raise _illegal(text, f"{host} is no IPv6 address") from None


def _require_component(component: str, text: str) -> None:
    if _COMPONENT.fullmatch(component):
        return
    if component.lower() != component and _COMPONENT.fullmatch(component.lower()):
        raise _illegal(text, "a repository's name is in lower case", hint=f"write {component.lower()!r}")
    raise _illegal(
        text,
        f"{component!r} is no part of a repository's name",
        hint="use lower-case letters and digits, joined by `.`, `_`, `__` or `-`",
    )


def _illegal(text: str, why: str, *, hint: str = "write [HOST[:PORT]/]NAME[:TAG][@DIGEST]") -> UsageError:
    return UsageError(f"{text!r} is no reference to an image: {why}", hint=hint)
