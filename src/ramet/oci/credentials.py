"""Credentials for registries, from where Docker and podman keep them.

They are looked up only when a registry asks. Secrets never appear in a representation or a message.

Sources: docker-login(1) and "Credential helpers" of docker.github.io; the README of
github.com/docker/docker-credential-helpers ("Development": the protocol of `get`); containers-auth.json(5).
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from ramet import config
from ramet.errors import RametError, UnavailableError
from ramet.oci.reference import DEFAULT_REGISTRY
from ramet.system import outside
from ramet.system.files import open_regular

_DOCKER_HUB_KEYS: Final = ("https://index.docker.io/v1/", "index.docker.io", "docker.io")
"""The names under which Docker keeps the default registry's credentials, and older ones."""
_HELPER_LIMIT_S: Final = 30.0
_MOST_HELPER_BYTES: Final = 64 * 1024
_MOST_FILE_BYTES: Final = 1 << 20
_HELPER_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_TOKEN_USER: Final = "<token>"
_NOT_FOUND: Final = b"credentials not found"


@dataclass(frozen=True)
class Credentials:
    """A user and a password, or a token that stands for both (an OAuth 2.0 refresh token)."""

    user: str
    password: str = field(repr=False)
    identity_token: str | None = field(default=None, repr=False)

    @property
    def basic(self) -> str:
        """The value of an `Authorization` header (RFC 7617)."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


@dataclass(frozen=True)
class Lookup:
    """Credentials, if there are any, and what kept ramet from looking everywhere."""

    credentials: Credentials | None = None
    trouble: str | None = None
    """A sentence for the error, if the registry then refuses: a helper that isn't there, a broken file."""


class _Entry(msgspec.Struct, rename={"identity_token": "identitytoken"}):
    auth: str | None = None
    username: str | None = None
    password: str | None = None
    identity_token: str | None = None


class _File(msgspec.Struct, rename="camel"):
    auths: dict[str, _Entry] | None = None
    cred_helpers: dict[str, str] | None = None
    creds_store: str | None = None


class _Answer(msgspec.Struct, rename="pascal"):
    username: str = ""
    secret: str = ""


def files() -> list[Path]:
    """Return the files that may have credentials, the first that knows a registry wins.

    `$REGISTRY_AUTH_FILE`; `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`;
    `$XDG_RUNTIME_DIR/containers/auth.json`.
    """
    found = []
    if chosen := config.text("REGISTRY_AUTH_FILE"):
        found.append(config.absolute(chosen, meaning="REGISTRY_AUTH_FILE"))
    if directory := config.text("DOCKER_CONFIG"):
        found.append(config.absolute(directory, meaning="DOCKER_CONFIG") / "config.json")
    elif (home := config.text("HOME")) and home.startswith("/"):
        found.append(Path(home) / ".docker" / "config.json")
    if (runtime := config.text("XDG_RUNTIME_DIR")) and runtime.startswith("/"):
        found.append(Path(runtime) / "containers" / "auth.json")
    return found


async def look_up(registry: str, repository: str) -> Lookup:
    """Find the credentials for a repository. Never raises for a file or a helper that doesn't work."""
    troubles = []
    for path in files():
        try:
            credentials = await _from_file(path, registry, repository)
        except RametError as error:
            troubles.append(error.message)
            continue
        if credentials is not None:
            return Lookup(credentials)
    return Lookup(trouble="; ".join(troubles) or None)


async def _from_file(path: Path, registry: str, repository: str) -> Credentials | None:
    content = _read(path)
    if content is None:
        return None
    try:
        parsed = msgspec.json.decode(content, type=_File)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UnavailableError(f"{path} can't be read as Docker's configuration") from error
    for key, helper in (parsed.cred_helpers or {}).items():
        if _bare(key) in _names_of(registry):
            return await _from_helper(helper, key, path)
    entry = _entry_of(parsed.auths or {}, registry, repository)
    if entry is not None and (credentials := _of_entry(entry, path)) is not None:
        return credentials
    if parsed.creds_store:
        key = _DOCKER_HUB_KEYS[0] if registry == DEFAULT_REGISTRY else registry
        return await _from_helper(parsed.creds_store, key, path)
    return None


def _read(path: Path) -> bytes | None:
    try:
        with open_regular(path.resolve()) as descriptor:
            content = os.read(descriptor, _MOST_FILE_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UnavailableError(f"{path} can't be read: {error.strerror}") from error
    if len(content) > _MOST_FILE_BYTES:
        raise UnavailableError(f"{path} has more than {_MOST_FILE_BYTES} bytes")
    return content


def _names_of(registry: str) -> tuple[str, ...]:
    return tuple(map(_bare, _DOCKER_HUB_KEYS)) if registry == DEFAULT_REGISTRY else (registry,)


def _bare(key: str) -> str:
    """Return a key without its scheme and its path's `/v1/`, `/v2/`: Docker has written it in many ways."""
    key = re.sub(r"^https?://", "", key).rstrip("/")
    return re.sub(r"/v[12]$", "", key)


def _entry_of(auths: dict[str, _Entry], registry: str, repository: str) -> _Entry | None:
    """Return the entry for the longest name that the repository is below (containers-auth.json(5))."""
    by_name = {_bare(key): entry for key, entry in auths.items()}
    for name in _names_of(registry):
        below = f"{name}/{repository}"
        while True:
            if below in by_name:
                return by_name[below]
            if below == name:
                break
            below = below.rpartition("/")[0]
    return None


def _of_entry(entry: _Entry, path: Path) -> Credentials | None:
    user, password = entry.username or "", entry.password or ""
    if entry.auth:
        try:
            decoded = base64.b64decode(entry.auth, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError) as error:
            raise UnavailableError(f"{path} has credentials that are no base64") from error
        user, _, password = decoded.partition(":")
        password = password.rstrip("\0")
    if entry.identity_token:
        return Credentials(user, "", entry.identity_token)
    return Credentials(user, password) if user else None


async def _from_helper(helper: str, key: str, path: Path) -> Credentials | None:
    """Ask `docker-credential-HELPER get`, which reads the registry's name and writes JSON."""
    if not _HELPER_NAME.fullmatch(helper):
        raise UnavailableError(
            f"{path} names a credential helper {helper[:80]!r}, which is no program's name"
        )
    name = f"docker-credential-{helper}"
    program = shutil.which(name)
    if program is None:
        raise UnavailableError(f"{path} names the credential helper {name}, which isn't on PATH")
    try:
        outcome = await outside.run_async(
            [program, "get"], limit_s=_HELPER_LIMIT_S, most_bytes=_MOST_HELPER_BYTES, given=key.encode()
        )
    except OSError as error:
        raise UnavailableError(f"the credential helper {name} failed: {error}") from error
    if outcome.failed and _NOT_FOUND in outcome.stdout + outcome.stderr:
        return None
    if outcome.failed:
        raise UnavailableError(
            f"the credential helper {name} failed: {outcome.last_words or 'it says nothing'}"
        )
    try:
        answer = msgspec.json.decode(outcome.stdout, type=_Answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # Its output may be half a secret, so it isn't shown.
        raise UnavailableError(f"the credential helper {name} answered something else than JSON") from error
    if answer.username == _TOKEN_USER:
        return Credentials("", "", answer.secret)
    return Credentials(answer.username, answer.secret) if answer.username else None
