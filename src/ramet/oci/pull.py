"""A pull: an image's documents and layers, from a registry into the cache.

Sources: OCI distribution-spec, "Pull"; OCI image-spec, "Image Index" (platforms).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ramet.errors import DamagedError, NotFoundError, RametError, RegistryError
from ramet.oci.answers import Limits
from ramet.oci.blobs import BlobCache
from ramet.oci.client import ManifestBytes, RegistryClient
from ramet.oci.digests import Digest
from ramet.oci.documents import (
    MOST_CONFIG_BYTES,
    Config,
    Descriptor,
    Index,
    Manifest,
    Platform,
    read_config,
    read_manifest,
)
from ramet.oci.parallel import Tally, each
from ramet.oci.platforms import choose, host_platform, require_fitting
from ramet.oci.reference import Reference
from ramet.oci.settings import Settings, endpoints
from ramet.oci.transport import Transport

_DEEPEST_INDEX: Final = 3


@dataclass(frozen=True)
class PulledImage:
    """An image whose parts are all in the cache."""

    reference: Reference
    """The reference that was asked for."""
    digest: Digest
    """The digest of what the tag names: of the index, if there is one. `docker pull` shows the same."""
    manifest_digest: Digest
    """The digest of the manifest for this platform: the image's identity."""
    manifest: Manifest
    config: Config
    layers: tuple[Path, ...]
    """The places of the layers' blobs, the lowest first. One that nobody needs may be absent."""
    fetched_bytes: int
    """The bytes of this pull that weren't in the cache."""


async def pull(
    reference: Reference,
    cache: BlobCache,
    *,
    settings: Settings | None = None,
    platform: Platform | None = None,
    limits: Limits | None = None,
    is_known: Callable[[Digest], bool] = lambda _: False,
    has_layer: Callable[[str, str], bool] = lambda _diff_id, _blob: False,
) -> PulledImage:
    """Bring an image into the cache, for this machine's platform unless another is given.

    `is_known` tells by the manifest's digest that no layer of the image is needed, `has_layer` by a layer's
    diff id and its blob's digest that the layer isn't. Progress is reported in bytes, all layers together.
    Raises `NotFoundError` for an image or a platform that isn't there, `RegistryLoginError`, `RegistryError`,
    `DamagedError` for content that isn't its digest's, `FilesystemError`. What is whole stays in the cache
    then, and cut layers are resumed by the next pull.
    """
    chosen = settings if settings is not None else Settings.from_environment()
    wanted = platform or host_platform()
    transport = Transport(chosen, limits)
    try:
        client, top = await _resolve(transport, reference, chosen)
        return await _pull(client, top, reference, cache, wanted, is_known, has_layer)
    finally:
        await transport.close()


async def _resolve(
    transport: Transport, reference: Reference, settings: Settings
) -> tuple[RegistryClient, ManifestBytes]:
    """Find the server that has the image: the mirror, else the registry; TLS, else plain HTTP on loopback."""
    servers = endpoints(reference.registry, settings)
    tries = [(server, scheme) for server in servers for scheme in server.schemes]
    skipped = None
    for number, (server, scheme) in enumerate(tries, 1):
        if server is skipped:
            continue
        client = RegistryClient(transport, server, scheme, reference.repository)
        try:
            return client, await client.manifest(reference)
        except (RegistryError, NotFoundError, DamagedError) as error:
            if number == len(tries):
                raise
            if scheme == server.schemes[-1] or not may_speak_plainly(error):
                if not server.is_mirror:
                    raise
                skipped = server
            # Nothing is lost: the next way is tried, and the last one's error is the user's.
    raise AssertionError("there is a server")


def may_speak_plainly(error: RametError) -> bool:
    """Tell whether a server on loopback may speak plain HTTP: TLS brought no answer, good or bad."""
    import ssl

    import httpx2

    cause = error.__cause__
    if not isinstance(cause, httpx2.NetworkError | httpx2.RemoteProtocolError):
        return False
    chain: BaseException | None = cause
    while chain is not None:
        if isinstance(chain, ssl.SSLCertVerificationError):
            return False
        chain = chain.__cause__ or chain.__context__
    return True


async def _pull(
    client: RegistryClient,
    top: ManifestBytes,
    reference: Reference,
    cache: BlobCache,
    wanted: Platform,
    is_known: Callable[[Digest], bool],
    has_layer: Callable[[str, str], bool],
) -> PulledImage:
    name = reference.familiar
    found, document = top, read_manifest(top.content, media_type=top.media_type, name=name)
    await cache.put(top.content, top.digest)
    for _ in range(_DEEPEST_INDEX):
        if not isinstance(document, Index):
            break
        entry = choose(document, wanted, name=name)
        found = await _child(client, reference, entry, cache)
        document = read_manifest(found.content, media_type=entry.media_type, name=name)
    if isinstance(document, Index):
        raise RegistryError(f"the index of {name} has indexes in indexes, more than {_DEEPEST_INDEX} deep")
    transfer = _Transfer(client, cache, name, document)
    config = read_config(await transfer.config(), manifest=document, name=name)
    require_fitting(config, wanted, name=name)
    parts = zip(config.rootfs.diff_ids, document.layers, strict=True)
    needed = {layer.digest for diff_id, layer in parts if not has_layer(diff_id, layer.digest)}
    layers = await transfer.layers(set() if is_known(found.digest) else needed)
    return PulledImage(reference, top.digest, found.digest, document, config, layers, transfer.fetched)


async def _child(
    client: RegistryClient, reference: Reference, entry: Descriptor, cache: BlobCache
) -> ManifestBytes:
    digest = entry.checked_digest
    content = await cache.read(digest, entry.size)
    if content is None:
        content = (await client.manifest(reference, digest)).content
        if len(content) != entry.size:
            raise DamagedError(f"manifest {digest} has {len(content)} bytes instead of {entry.size}")
        await cache.put(content, digest)
    return ManifestBytes(content, entry.media_type, digest)


class _Transfer:
    """The blobs of one image, and how much of them is there."""

    def __init__(self, client: RegistryClient, cache: BlobCache, name: str, manifest: Manifest) -> None:
        self._client = client
        self._cache = cache
        self._manifest = manifest
        self._distinct = list({layer.digest: layer for layer in manifest.layers}.values())
        total = manifest.config.size + sum(layer.size for layer in self._distinct)
        self._tally = Tally(f"pulling {name}", total)
        self._count = self._tally.count
        self.fetched = 0

    async def config(self) -> bytes:
        """Return the image's configuration."""
        descriptor = self._manifest.config
        for _ in range(2):
            path = await self._cache.fetch(descriptor, self._open, on_bytes=self._count)
            content = await self._cache.read(descriptor.checked_digest, descriptor.size)
            if content is not None and len(content) <= MOST_CONFIG_BYTES:
                return content
            # A file of the right size that was written over: it is fetched once more.
            await self._cache.discard(descriptor.checked_digest)
            self._count(-descriptor.size)
        raise DamagedError(f"{path} changes while it is read", hint="check the cache's disk")

    async def layers(self, needed: set[str]) -> tuple[Path, ...]:
        """Fetch the layers with these digests, four at a time. The first error ends the others."""
        wanted = [layer for layer in self._distinct if layer.digest in needed]
        self._tally.total = self._manifest.config.size + sum(layer.size for layer in wanted)

        async def fetch(layer: Descriptor) -> None:
            await self._cache.fetch(layer, self._open, on_bytes=self._count)

        await each(wanted, fetch)
        return tuple(self._cache.path(layer.checked_digest) for layer in self._manifest.layers)

    @asynccontextmanager
    async def _open(self, digest: Digest, offset: int, size: int) -> AsyncIterator[_Counted]:
        async with self._client.blob(digest, offset, size) as part:
            yield _Counted(part.offset, part.chunks(), self)


@dataclass
class _Counted:
    """A part of a blob whose bytes count as fetched."""

    offset: int
    _chunks: AsyncIterator[bytes]
    _transfer: _Transfer

    async def chunks(self) -> AsyncIterator[bytes]:
        async for chunk in self._chunks:
            self._transfer.fetched += len(chunk)
            yield chunk
