"""A push: an image's layers and documents, from files into a registry's repository.

Source: OCI distribution-spec, "Push": blobs first, the manifest last, so that no reader sees half an image.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ramet.errors import RegistryError, UsageError
from ramet.oci.answers import Limits
from ramet.oci.blobs import BlobCache, Patience
from ramet.oci.client import RegistryClient
from ramet.oci.digests import Digest
from ramet.oci.documents import MOST_MANIFEST_BYTES, OCI_MANIFEST, Descriptor, Manifest, read_manifest
from ramet.oci.parallel import Tally, each
from ramet.oci.pull import may_speak_plainly
from ramet.oci.reference import Reference
from ramet.oci.settings import Settings, endpoints
from ramet.oci.transport import Transport
from ramet.oci.upload import Uploader


@dataclass(frozen=True)
class ImageContent:
    """The content of one image, for one platform: its manifest, and the files of its blobs."""

    manifest: bytes
    media_type: str
    blobs: tuple[tuple[Descriptor, Path], ...]
    """Layers and configuration, each once."""

    @property
    def digest(self) -> Digest:
        """The image's identity: its manifest's digest."""
        return Digest.of(self.manifest)


@dataclass(frozen=True)
class PushedImage:
    """An image that a registry has now."""

    reference: Reference
    """The name by which it can be pulled, with its digest."""
    digest: Digest
    sent_bytes: int
    """Bytes of blobs that were sent; the registry had or mounted the others."""
    size_bytes: int


async def cached_image(cache: BlobCache, digest: Digest, *, name: str) -> ImageContent | None:
    """Return an image as it was pulled or imported; None if the cache hasn't all of it any more."""
    manifest = await cache.read_whole(digest, most_bytes=MOST_MANIFEST_BYTES)
    if manifest is None:
        return None
    document = read_manifest(manifest, media_type=None, name=name)
    if not isinstance(document, Manifest):
        return None
    distinct = {blob.digest: blob for blob in (*document.layers, document.config)}.values()
    if not all(cache.has(blob.checked_digest, blob.size) for blob in distinct):
        return None
    blobs = tuple((blob, cache.path(blob.checked_digest)) for blob in distinct)
    return ImageContent(manifest, document.media_type or OCI_MANIFEST, blobs)


async def push(
    reference: Reference,
    content: ImageContent,
    *,
    mount_from: Iterable[Reference] = (),
    settings: Settings | None = None,
    limits: Limits | None = None,
    patience: Patience | None = None,
) -> PushedImage:
    """Put an image into a registry, under the tag or the digest of `reference`.

    Blobs that the repository has aren't sent; those of a repository in `mount_from` at the same registry are
    mounted from there where the registry can. A mirror is never pushed to. Progress is reported in bytes.
    Raises `UsageError` for a digest that isn't the image's, `RegistryLoginError`, `RegistryError`,
    `DamagedError` for a file that isn't its blob, `FilesystemError`; the tag is as before then.
    """
    if reference.digest is not None and reference.digest != content.digest:
        raise UsageError(
            f"{reference.familiar} can't be pushed to: the image's digest is {content.digest}",
            hint="push to a tag",
        )
    chosen = settings if settings is not None else Settings.from_environment()
    transport = Transport(chosen, limits)
    here = [source.repository for source in mount_from if source.registry == reference.registry]
    source = next((name for name in here if name != reference.repository), None)
    try:
        return await _push(transport, reference, content, source, chosen, patience)
    finally:
        await transport.close()


async def _push(
    transport: Transport,
    reference: Reference,
    content: ImageContent,
    source: str | None,
    settings: Settings,
    patience: Patience | None,
) -> PushedImage:
    uploader = Uploader(await _client(transport, reference, content, source, settings), patience=patience)
    tally = Tally(f"pushing {reference.familiar}", sum(blob.size for blob, _ in content.blobs))
    sent = 0

    async def send(item: tuple[Descriptor, Path]) -> None:
        nonlocal sent
        blob, path = item
        if await uploader.has(blob):
            tally.count(blob.size)
        else:
            its_bytes = await uploader.send(blob, path, mount_from=source, on_bytes=tally.count)
            sent += its_bytes

    await each(content.blobs, send)
    await uploader.put_manifest(content.manifest, content.media_type, reference.wanted)
    return PushedImage(
        reference.with_digest(content.digest),
        content.digest,
        sent,
        sum(blob.size for blob, _ in content.blobs),
    )


async def _client(
    transport: Transport, reference: Reference, content: ImageContent, source: str | None, settings: Settings
) -> RegistryClient:
    """Return a client for the registry, never its mirror; by TLS, on loopback else by plain HTTP."""
    scopes = [f"repository:{reference.repository}:pull,push"]
    scopes += [f"repository:{source}:pull"] if source is not None else []
    server = endpoints(reference.registry, settings)[-1]

    def client(scheme: str) -> RegistryClient:
        return RegistryClient(transport, server, scheme, reference.repository, scopes=tuple(scopes))

    for scheme in server.schemes[:-1]:
        tried = client(scheme)
        try:
            await Uploader(tried).has(content.blobs[-1][0], tries=1)
        except RegistryError as error:
            if not may_speak_plainly(error):
                raise
            # Nothing is lost: a registry on this machine is asked without TLS next.
        else:
            return tried
    return client(server.schemes[-1])
