"""Authorization at a registry: nothing, a user and a password, or tokens that are renewed in time.

Sources: RFC 9110, 11.6.1 (WWW-Authenticate); RFC 6750; Docker Registry, "Token Authentication
Specification" and "OAuth2 Token Authentication".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode, urlsplit

import anyio
import msgspec

from ramet.errors import RegistryError, RegistryLoginError
from ramet.oci.answers import body, busy_words, refusal
from ramet.oci.credentials import Credentials, Lookup, look_up
from ramet.oci.transport import Content, Transport
from ramet.text import printable

if TYPE_CHECKING:
    import httpx2

_MOST_HEADER: Final = 8192
_MOST_TOKEN_BYTES: Final = 1 << 20
_DEFAULT_LIFE_S: Final = 60.0
_MARGIN_S: Final = 5.0
_CLIENT: Final = "ramet"
_NO_POST: Final = frozenset({404, 405})
"""A token server answers so to a POST that knows GET alone."""
_MOST_SHOWN: Final = 200
_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PIECE: Final = re.compile(
    rf'\s*,?\s*(?:({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|({_TOKEN}))|({_TOKEN})(?=\s|,|$))'
)


@dataclass(frozen=True)
class Challenge:
    """A way in which a server wants to be convinced: `basic` or `bearer`, with its parameters."""

    scheme: str
    parameters: dict[str, str]


def parse_challenges(header: str) -> list[Challenge]:
    """Read a WWW-Authenticate header. What can't be read ends the list."""
    found: list[Challenge] = []
    position, header = 0, header[:_MOST_HEADER]
    while match := _PIECE.match(header, position):
        name, quoted, plain, scheme = match.groups()
        if scheme is not None:
            found.append(Challenge(scheme.lower(), {}))
        elif found:
            value = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            found[-1].parameters.setdefault(name.lower(), value)
        position = match.end()
    return found


class _Token(msgspec.Struct):
    token: str | None = None
    access_token: str | None = None
    expires_in: float | None = None


class Authorizer:
    """The authorization for one repository at one server, shared by all requests of a pull or push.

    `home` is a URL of the server. `scopes` are those of the tokens; none: what the server asks for.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        registry: str,
        repository: str,
        home: str,
        scopes: tuple[str, ...] = (),
    ) -> None:
        self._transport = transport
        self._registry = registry
        self._repository = repository
        self._home = home
        self._scopes = scopes
        self._lookup: Lookup | None = None
        self._header: str | None = None
        self._challenge: Challenge | None = None
        self._expires = float("inf")
        self._lock = anyio.Lock()

    async def header(self) -> str | None:
        """Return the value of `Authorization`; a token that ends within seconds is renewed first."""
        if self._challenge is not None and monotonic() >= self._expires:
            async with self._lock:
                if monotonic() >= self._expires:
                    await self._get_token(self._challenge)
        return self._header

    async def answer(self, header: str, *, refused: str | None) -> None:
        """Get what a 401 asks for. `refused` is the authorization that was refused.

        Of several requests that are refused at once, one gets the new token for all. Raises
        `RegistryLoginError` when there is nothing more to try.
        """
        async with self._lock:
            if self._header != refused:
                return  # another request has got a new one meanwhile
            by_scheme = {challenge.scheme: challenge for challenge in reversed(parse_challenges(header))}
            if "bearer" in by_scheme:
                await self._get_token(by_scheme["bearer"])
            elif "basic" in by_scheme:
                await self._use_password(refused)
            else:
                known = ", ".join(by_scheme) or "nothing"
                raise RegistryLoginError(
                    f"{self._registry} asks for {known[:80]}; ramet knows basic and bearer"
                )

    async def denied(self, words: str) -> RegistryLoginError:
        """Make the error for a refusal that stays one."""
        lookup = self._lookup or Lookup()
        trouble = f" ({lookup.trouble})" if lookup.trouble else ""
        name = f"{self._registry}/{self._repository}"
        if lookup.credentials is None:
            why = "needs a login to be pushed to" if self._scopes else "isn't there, or needs a login"
            return RegistryLoginError(
                f"{name} {why}: {words}{trouble}",
                hint=f"check the name, or log in with `docker login {self._registry}` or `podman login`",
            )
        user = f" of {lookup.credentials.user}" if lookup.credentials.user else ""
        may = "it may have no permission to push there; else " if self._scopes else ""
        return RegistryLoginError(
            f"{self._registry} refuses the login{user} for {name}: {words}",
            hint=f"{may}log in anew with `docker login {self._registry}` or `podman login`",
        )

    async def _credentials(self) -> Credentials | None:
        if self._lookup is None:
            self._lookup = await look_up(self._registry, self._repository)
        return self._lookup.credentials

    async def _use_password(self, refused: str | None) -> None:
        credentials = await self._credentials()
        if credentials is None or credentials.identity_token or credentials.basic == refused:
            raise await self.denied("401 Unauthorized")
        self._header, self._challenge = credentials.basic, None

    async def _get_token(self, challenge: Challenge) -> None:
        realm = challenge.parameters.get("realm", "")
        try:
            place = urlsplit(realm)
            server = printable(place.netloc[:_MOST_SHOWN].rpartition("@")[2].encode(errors="replace"))
        except ValueError:
            place, server = urlsplit(""), ""
        if place.scheme not in ("https", "http") or not place.hostname:
            raise RegistryError(f"{self._registry} names no server that gives tokens")
        if place.scheme == "http" and not self._home.startswith("http:"):
            raise RegistryError(f"{self._registry} wants the login to be sent without TLS, to {server}")
        scopes = self._scopes or (challenge.parameters.get("scope") or f"repository:{self._repository}:pull",)
        parameters = [("scope", scope) for scope in scopes]
        if service := challenge.parameters.get("service"):
            parameters.append(("service", service))
        asked = monotonic()
        content = await self._ask_for_token(realm, server, parameters)
        try:
            answer = msgspec.json.decode(content or b"", type=_Token)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise RegistryError(f"{server} gave something else than a token") from error
        token = answer.token or answer.access_token
        if not token or not re.fullmatch(r"[\x21-\x7e]+", token):
            raise RegistryError(f"{server} gave no token")
        life_s = answer.expires_in if answer.expires_in and answer.expires_in > 0 else _DEFAULT_LIFE_S
        self._header, self._challenge = f"Bearer {token}", challenge
        self._expires = asked + max(1.0, life_s - _MARGIN_S)

    async def _ask_for_token(
        self, realm: str, server: str, parameters: list[tuple[str, str]]
    ) -> bytes | None:
        credentials = await self._credentials()
        if credentials is not None and credentials.identity_token:
            form = [
                ("grant_type", "refresh_token"),
                ("refresh_token", credentials.identity_token),
                ("client_id", _CLIENT),
                *[(name, value) for name, value in parameters if name != "scope"],
                ("scope", " ".join(value for name, value in parameters if name == "scope")),
            ]
            posted = Content.of(urlencode(form).encode(), "application/x-www-form-urlencoded")
            async with self._transport.ask(
                "POST", realm, headers={}, content=posted, home=self._home
            ) as response:
                if response.status_code not in _NO_POST:
                    return await self._token_of(response, server)
            # It doesn't know OAuth 2.0: the token goes where a password does, as containerd has it.
            credentials = Credentials(credentials.user or _CLIENT, credentials.identity_token)
        url = realm + ("&" if urlsplit(realm).query else "?") + urlencode(parameters)
        basic = credentials.basic if credentials is not None else None
        async with self._transport.ask(
            "GET", url, headers={}, authorization=basic, home=self._home
        ) as response:
            return await self._token_of(response, server)

    async def _token_of(self, response: httpx2.Response, server: str) -> bytes | None:
        if response.status_code in (400, 401, 403):
            raise await self.denied(await refusal(response))
        if response.status_code == 429:
            raise RegistryError(
                f"{server} gives no token now: too many requests", hint=f"try again {busy_words(response)}"
            )
        if response.status_code != 200:
            raise RegistryError(f"{server} gives no token: {await refusal(response)}")
        return await body(response, most_bytes=_MOST_TOKEN_BYTES, limits=self._transport.limits)
