"""The pushing half of a registry's API: blobs and manifests into a repository.

Sources: OCI distribution-spec, "Push" (end-4b, end-6, end-7, end-11), "Error Codes".
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import quote

import anyio

from ramet.errors import DamagedError, RegistryError
from ramet.oci.answers import refusal
from ramet.oci.blobs import CutError, Patience
from ramet.oci.client import RegistryClient
from ramet.oci.digests import Digest
from ramet.oci.documents import Descriptor
from ramet.oci.places import redirected
from ramet.oci.transport import Content
from ramet.system import threads
from ramet.system.files import filesystem_errors, open_regular

if TYPE_CHECKING:
    import httpx2

T = TypeVar("T")
_READ_BYTES: Final = 256 * 1024
_TRIES: Final = 5
_LOST: Final = frozenset({404, 416, 429})
"""An upload that the registry has forgotten or has no time for: another one may succeed."""
_ABSENT: Final = frozenset({404, 405, 501})
"""Absent, or nobody knows: it is sent then."""


class Uploader:
    """Sends content to a repository."""

    def __init__(self, client: RegistryClient, *, patience: Patience | None = None) -> None:
        self._client = client
        self._patience = patience or Patience()

    async def has(self, blob: Descriptor, *, tries: int = _TRIES) -> bool:
        """Tell whether the repository has a blob. Raises `RegistryLoginError`, `RegistryError`."""
        return await self._persistently(lambda: self._has(blob), tries)

    async def _has(self, blob: Descriptor) -> bool:
        url = f"{self._client.base}/blobs/{blob.checked_digest}"
        async with self._client.ask("HEAD", url, {}) as response:
            if response.status_code in _ABSENT:
                return False
            await self._client.require_success(response, _name(blob), verb="tell whether it has")
            length = response.headers.get("content-length")
            return length is None or length == str(blob.size)

    async def send(
        self,
        blob: Descriptor,
        path: Path,
        *,
        mount_from: str | None = None,
        on_bytes: Callable[[int], None] = lambda _: None,
    ) -> int:
        """Send the blob in a file; returns the number of bytes that were sent.

        With `mount_from`, a repository of the same registry, the registry is asked to take the blob from
        there, and nothing is sent if it does. `on_bytes` is called as `BlobCache.fetch` does. A cut upload is
        begun anew. Raises `DamagedError` if the file isn't the blob, `FilesystemError`, `RegistryLoginError`,
        `RegistryError`; the repository has no part of the blob then.
        """
        pause_s = self._patience.first_s
        for left in range(_TRIES - 1, -1, -1):
            counted = _Counted(blob, path, on_bytes)
            try:
                place = await self._begin(blob, mount_from)
                if place is None:
                    on_bytes(blob.size)
                    return 0
                await self._put(blob, place, counted)
            except CutError as error:
                counted.forget()
                if not left:
                    raise RegistryError(
                        f"{error.message}, and {_TRIES - 1} further tries didn't send {_name(blob)}",
                        hint=error.hint or "try again later",
                    ) from error
            else:
                counted.finish()
                return blob.size
            await anyio.sleep(pause_s)
            pause_s = min(pause_s * 2, self._patience.longest_s)
        raise AssertionError("the last try returns or raises")

    async def put_manifest(self, content: bytes, media_type: str, name: str) -> Digest:
        """Store a manifest whose blobs are there under a tag or its digest. Errors as `send`."""
        return await self._persistently(lambda: self._put_manifest(content, media_type, name))

    async def _put_manifest(self, content: bytes, media_type: str, name: str) -> Digest:
        digest = Digest.of(content)
        url = f"{self._client.base}/manifests/{name}"
        async with self._client.ask("PUT", url, {}, Content.of(content, media_type)) as response:
            await self._require_created(response, f"the manifest {name}")
            stored = response.headers.get("docker-content-digest")
        if stored is not None and stored != str(digest):
            raise DamagedError(
                f"{self._client.endpoint.authority} stored another manifest than {digest}",
                hint="the registry or a proxy before it changes what is sent",
            )
        return digest

    async def _persistently(self, work: Callable[[], Awaitable[T]], tries: int = _TRIES) -> T:
        """Do what may be done twice, again after a cut."""
        pause_s = self._patience.first_s
        for _ in range(tries - 1):
            try:
                return await work()
            except CutError:
                pass  # the last try says what it is
            await anyio.sleep(pause_s)
            pause_s = min(pause_s * 2, self._patience.longest_s)
        return await work()

    async def _begin(self, blob: Descriptor, mount_from: str | None) -> str | None:
        """Open an upload. Returns its place; None if the blob was mounted."""
        url = f"{self._client.base}/blobs/uploads/"
        if mount_from is not None:
            url += f"?mount={quote(blob.digest, safe='')}&from={quote(mount_from, safe='')}"
        async with self._client.ask("POST", url, {}, Content.of(b"", "application/octet-stream")) as response:
            if response.status_code == 201 and mount_from is not None:
                return None
            if response.status_code != 202:
                await self._require_created(response, _name(blob))
                raise RegistryError(f"{self._client.endpoint.authority} opens no upload of {_name(blob)}")
            return self._place_of(response, blob)

    def _place_of(self, response: httpx2.Response, blob: Descriptor) -> str:
        location = response.headers.get("location")
        if location is None:
            raise RegistryError(f"{self._client.endpoint.authority} names no place for {_name(blob)}")
        place = str(redirected(response.url, location)).partition("#")[0]
        # Behind what is there, as it is: it may be signed.
        return f"{place}{'&' if '?' in place else '?'}digest={quote(blob.digest, safe='')}"

    async def _put(self, blob: Descriptor, place: str, counted: _Counted) -> None:
        content = Content(blob.size, counted.open)
        async with self._client.ask("PUT", place, {}, content, is_patient=False) as response:
            if response.status_code in _LOST:
                raise CutError(
                    f"{self._client.endpoint.authority} dropped an upload: {await refusal(response)}",
                    hint="try again later",
                )
            if response.status_code != 201:
                counted.require_right()
            await self._require_created(response, _name(blob))

    async def _require_created(self, response: httpx2.Response, what: str) -> None:
        if response.status_code in (201, 204):
            return
        server = self._client.endpoint.authority
        if response.status_code == 413:
            raise RegistryError(
                f"{server} takes no upload as large as {what}",
                hint="a proxy before the registry may limit it (nginx: client_max_body_size)",
            )
        if response.status_code == 404:
            raise RegistryError(
                f"{server} has no repository {self._client.repository} to push to: {await refusal(response)}",
                hint="check the name; some registries want a repository to be made first",
            )
        if response.status_code == 405:
            raise RegistryError(f"{server} takes no images: {await refusal(response)}")
        await self._client.require_success(response, what, verb="take")


class _Counted:
    """A file's content, hashed and counted as it is sent, each time from the beginning."""

    def __init__(self, blob: Descriptor, path: Path, on_bytes: Callable[[int], None]) -> None:
        self._blob = blob
        self._path = path
        self._on_bytes = on_bytes
        self._sent = 0
        self._digest = ""

    async def open(self) -> AsyncGenerator[bytes, None]:
        self.forget()
        hasher = self._blob.checked_digest.hasher()
        with filesystem_errors("read", self._path), open_regular(self._path) as file:
            while self._sent < self._blob.size:
                most = min(_READ_BYTES, self._blob.size - self._sent)
                data = await threads.run(os.pread, file, most, self._sent)
                if not data:
                    raise self._damaged()
                hasher.update(data)
                self._sent += len(data)
                if self._sent == self._blob.size:
                    self._digest = str(hasher.hexdigest())
                    self.require_right()
                yield data
                self._on_bytes(len(data))

    def forget(self) -> None:
        """Take back what was counted: it has to be sent again."""
        self._on_bytes(-self._sent)
        self._sent, self._digest = 0, ""

    def finish(self) -> None:
        """Count what a server that answered early didn't read."""
        self._on_bytes(self._blob.size - self._sent)

    def require_right(self) -> None:
        """Raise `DamagedError` if all was read and isn't the blob."""
        if self._digest and self._digest != self._blob.checked_digest.hexadecimal:
            raise self._damaged()

    def _damaged(self) -> DamagedError:
        return DamagedError(
            f"{self._path} isn't what its name says, so it wasn't sent",
            hint="pull or import the image again: that puts the right content there",
        )


def _name(blob: Descriptor) -> str:
    return f"blob {blob.checked_digest.short}"
