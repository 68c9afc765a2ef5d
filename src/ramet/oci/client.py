"""A registry's API, as far as a pull needs it: manifests by tag or digest, blobs from any byte on.

Sources: OCI distribution-spec, "Pull" (end-2, end-3), "Error Codes"; RFC 9110, 14 (ranges).
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ramet.errors import DamagedError, NotFoundError, RegistryError
from ramet.oci.answers import Limits, body, busy_words, chunks, refusal
from ramet.oci.auth import Authorizer
from ramet.oci.blobs import CutError
from ramet.oci.digests import Digest
from ramet.oci.documents import INDEX_TYPES, MANIFEST_TYPES, MOST_MANIFEST_BYTES
from ramet.oci.places import is_same_server
from ramet.oci.reference import Reference
from ramet.oci.settings import Endpoint
from ramet.oci.transport import Content, Transport

if TYPE_CHECKING:
    import httpx2

_ACCEPT: Final = ", ".join(sorted(INDEX_TYPES | MANIFEST_TYPES))
_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,15})-(\d{1,15})/(\d{1,15}|\*)")
_BROKEN: Final = "try again; if that doesn't help, the registry or a proxy before it is broken"
_GONE: Final = 416
_MANIFEST_TRIES: Final = 3
_MOST_REFUSALS: Final = 2
"""Refusals of one request: the first asks for a login, the second finds a token that has just ended."""


@dataclass(frozen=True)
class ManifestBytes:
    """A manifest or an index as the registry has it."""

    content: bytes
    media_type: str | None
    digest: Digest


@dataclass(frozen=True)
class BlobPart:
    """A blob's bytes from an offset on."""

    offset: int
    _response: httpx2.Response
    _limits: Limits

    def chunks(self) -> AsyncIterator[bytes]:
        """Iterate over the bytes as they arrive. Raises `CutError`."""
        return chunks(self._response, self._limits)


class RegistryClient:
    """A repository of a registry, at one server. `scopes` are those of its tokens (`Authorizer`)."""

    def __init__(
        self,
        transport: Transport,
        endpoint: Endpoint,
        scheme: str,
        repository: str,
        *,
        scopes: tuple[str, ...] = (),
    ) -> None:
        self._transport = transport
        self.endpoint = endpoint
        self.repository = repository
        self.base = f"{scheme}://{endpoint.authority}/v2/{repository}"
        self._authorizer = Authorizer(
            transport, registry=endpoint.registry, repository=repository, home=self.base, scopes=scopes
        )

    async def manifest(self, reference: Reference, digest: Digest | None = None) -> ManifestBytes:
        """Fetch the manifest that the reference names, or another one of its repository by digest.

        Raises `NotFoundError` if there is none, `RegistryLoginError` if it isn't ours to see, `DamagedError`
        if its digest is another one, and `RegistryError` for the rest.
        """
        for _ in range(_MANIFEST_TRIES - 1):
            with suppress(CutError):  # what arrived of a manifest is worth nothing: it is asked for again
                return await self._manifest(reference, digest or reference.digest)
        return await self._manifest(reference, digest or reference.digest)

    async def _manifest(self, reference: Reference, wanted: Digest | None) -> ManifestBytes:
        url = f"{self.base}/manifests/{wanted or reference.wanted}"
        async with self.ask("GET", url, {"Accept": _ACCEPT}) as response:
            if response.status_code == 404:
                raise NotFoundError(
                    f"{self.endpoint.registry} has no image {reference.familiar}: {await refusal(response)}",
                    hint="check the name and the tag",
                )
            await self.require_success(response, reference.familiar)
            content = await body(response, most_bytes=MOST_MANIFEST_BYTES, limits=self._transport.limits)
            media_type = response.headers.get("content-type")
        if content is None:
            raise RegistryError(
                f"the manifest of {reference.familiar} has more than {MOST_MANIFEST_BYTES} bytes"
            )
        if wanted is not None and not wanted.matches(content):
            raise DamagedError(
                f"{self.endpoint.authority} sent something else than manifest {wanted}",
                hint=_BROKEN,
            )
        return ManifestBytes(content, media_type, wanted or Digest.of(content))

    @asynccontextmanager
    async def blob(self, digest: Digest, offset: int, size: int) -> AsyncIterator[BlobPart]:
        """Open a blob from `offset` on, or from 0 if the server can't.

        Errors as `manifest`, and `CutError`.
        """
        url = f"{self.base}/blobs/{digest}"
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        name = f"blob {digest.short} of {self.repository}"
        async with self.ask("GET", url, headers) as response:
            if response.status_code == 404:
                raise NotFoundError(
                    f"{self.endpoint.registry} has no {name}", hint="pull the image by its tag again"
                )
            if response.status_code == _GONE and offset:
                await self._require_length(response, None, name)
            else:
                await self.require_success(response, name)
                start = self._start_of(response, offset, size, name)
                await self._require_length(response, size - start, name)
                yield BlobPart(start, response, self._transport.limits)
                return
        # The server has fewer bytes than we: from the beginning.
        async with self.ask("GET", url, {}) as response:
            await self.require_success(response, name)
            await self._require_length(response, size, name)
            yield BlobPart(0, response, self._transport.limits)

    def _start_of(self, response: httpx2.Response, offset: int, size: int, name: str) -> int:
        if response.status_code != 206:
            return 0
        match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
        if match is None or int(match[1]) != offset or match[3] not in ("*", str(size)):
            raise RegistryError(f"{self.endpoint.registry} sent another part of {name} than it was asked for")
        return offset

    async def _require_length(self, response: httpx2.Response, expected: int | None, name: str) -> None:
        length = response.headers.get("content-length")
        if expected is not None and length is not None and length != str(expected):
            raise DamagedError(
                f"{self.endpoint.registry} sends {length[:20]} bytes of {name} instead of {expected}",
                hint=_BROKEN,
            )

    async def require_success(self, response: httpx2.Response, what: str, *, verb: str = "give") -> None:
        """Raise unless the answer is 200 or 206. `what` names what the server doesn't `verb`.

        Raises `RegistryLoginError`, `CutError` for what another try may mend, `RegistryError`.
        """
        status = response.status_code
        if status in (200, 206):
            return
        server = self.endpoint.authority
        if status in (401, 403):
            raise await self._authorizer.denied(await refusal(response))
        if status == 429:
            raise RegistryError(
                f"{server} allows no more requests now, for {what}: {await refusal(response)}",
                hint=f"try again {busy_words(response)}, log in, or set RAMET_REGISTRY_MIRROR",
            )
        kind = CutError if status >= 500 else RegistryError
        raise kind(f"{server} doesn't {verb} {what}: {await refusal(response)}", hint="try again later")

    @asynccontextmanager
    async def ask(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        content: Content | None = None,
        *,
        is_patient: bool = True,
    ) -> AsyncIterator[httpx2.Response]:
        """Open an answer, with the authorization that it takes. The last refusal is the caller's.

        A URL of another server than the registry's gets no authorization. Errors: `Transport.ask`.
        """
        is_ours = is_same_server(url, self.base)
        for left in range(_MOST_REFUSALS, -1, -1):
            authorization = await self._authorizer.header() if is_ours else None
            async with self._transport.ask(
                method,
                url,
                headers=headers,
                authorization=authorization,
                content=content,
                home=self.base,
                is_patient=is_patient,
            ) as response:
                if response.status_code != 401 or not left or not is_ours:
                    yield response
                    return
                challenge = ", ".join(response.headers.get_list("www-authenticate"))
            if not challenge:
                raise await self._authorizer.denied("401 Unauthorized")
            await self._authorizer.answer(challenge, refused=authorization)
