"""An image of the library into a registry: as it was pulled where that is at hand, else as one layer.

What was pulled is pushed byte for byte, with its digest. The download cache may have dropped some of it; then
the registry that it came from is asked again. An image that came from no registry, or whose registry doesn't
answer, is packed anew: one layer, another digest, and the result says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ramet.errors import DamagedError, NotFoundError, RametError, RegistryError, UsageError
from ramet.images.library.library import Library
from ramet.images.library.names import host_platform_text
from ramet.images.library.records import ContainerImage
from ramet.images.library.squash import Squashed, squash
from ramet.model.container import ImageConfig
from ramet.oci.reference import Reference
from ramet.system import threads
from ramet.system.files import filesystem_errors

if TYPE_CHECKING:
    from ramet.oci.blobs import BlobCache
    from ramet.oci.push import ImageContent

_MADE_BY: Final = "ramet image push: all layers in one"


@dataclass(frozen=True)
class Pushed:
    """An image that a registry has now."""

    reference: str
    """The name that it was given, without its digest."""
    digest: str
    """The digest of its manifest, by which it can be pulled: `sha256:` and 64 digits."""
    sent_bytes: int
    """Bytes that were sent; the registry had the others."""
    size_bytes: int
    squashed: str | None = None
    """None for an image as it was pulled; else why it was packed as one layer with another digest."""


async def push_image(
    library: Library, cache_directory: Path, text: str, target: str, *, platform: str = ""
) -> Pushed:
    """Put the image that `text` names into a registry, under the reference `target`.

    Raises `NotFoundError` for no such image, `UsageError` for a target that is no reference, `DamagedError`
    for an image that isn't whole, and what a push raises; the registry's tag is as before then.
    """
    from ramet.oci.blobs import BlobCache
    from ramet.oci.downloads import using
    from ramet.oci.push import push

    reference = Reference.parse(target)
    if reference.digest is not None:
        raise UsageError(f"{target!r} has a digest, which the content decides", hint="push to a tag")
    image = library.get(text, platform=platform)
    cache = BlobCache(cache_directory)
    async with library.using(), using(cache_directory):
        content, why = await _content(library, cache, image)
        sources = _sources(library, image)
        pushed = await push(reference, content, mount_from=sources)
    return Pushed(reference.familiar, str(pushed.digest), pushed.sent_bytes, pushed.size_bytes, why)


async def _content(
    library: Library, cache: BlobCache, image: ContainerImage
) -> tuple[ImageContent, str | None]:
    """Return what is pushed, and why it isn't what was pulled."""
    from ramet.oci.digests import Digest
    from ramet.oci.push import cached_image

    digest = Digest.parse(image.digest)
    if (content := await cached_image(cache, digest, name=image.name)) is not None:
        return content, None
    why = "it came from no registry"
    for source in _sources(library, image):
        try:
            return await _pulled_again(cache, source.with_digest(digest), image), None
        except (RegistryError, NotFoundError) as error:
            why = f"its layers aren't kept here, and {error.message}"
    if damage := await threads.run(library.damage, image):
        raise DamagedError(
            f"the image {image.name} is damaged: {damage[0]}", hint="pull or import it again, then push it"
        )
    return await _packed(cache, image), why


async def _pulled_again(cache: BlobCache, source: Reference, image: ContainerImage) -> ImageContent:
    from ramet.oci.pull import pull
    from ramet.oci.push import cached_image

    pulled = await pull(source, cache, platform=_platform(image))
    content = await cached_image(cache, pulled.manifest_digest, name=image.name)
    if content is None:
        raise RegistryError(f"{source.familiar} was pulled, and is gone from the cache again")
    return content


def _sources(library: Library, image: ContainerImage) -> list[Reference]:
    """Return the references by which registries have an image."""
    found = []
    for names, other in library.images():
        if other.digest == image.digest:
            for entry in names:
                if not entry.is_local:
                    try:
                        found.append(Reference.parse(entry.name))
                    except RametError:
                        continue  # a name that no registry has
    return found


async def _packed(cache: BlobCache, image: ContainerImage) -> ImageContent:
    """Pack an image as one layer, and put it into the cache with its documents."""
    from ramet.oci.digests import Digest
    from ramet.oci.documents import OCI_CONFIG, OCI_MANIFEST, Descriptor
    from ramet.oci.push import ImageContent

    scratch = cache.scratch()
    try:
        made = await threads.run(squash, image, scratch)
        layer = Digest.parse(made.digest)
        with filesystem_errors("publish", cache.path(layer)):
            await threads.run(cache.adopt, scratch, layer)
    finally:
        scratch.unlink(missing_ok=True)
    config = msgspec.json.encode(_config(image, made), order="deterministic")
    config_digest = Digest.of(config)
    await cache.put(config, config_digest)
    layer_type = "application/vnd.oci.image.layer.v1.tar+gzip"
    layer_descriptor = Descriptor(layer_type, made.size_bytes, made.digest)
    config_descriptor = Descriptor(OCI_CONFIG, len(config), str(config_digest))
    manifest = msgspec.json.encode(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": _described(config_descriptor),
            "layers": [_described(layer_descriptor)],
        },
        order="deterministic",
    )
    blobs = (
        (layer_descriptor, cache.path(layer)),
        (config_descriptor, cache.path(config_digest)),
    )
    return ImageContent(manifest, OCI_MANIFEST, blobs)


def _described(descriptor: Any) -> dict[str, Any]:
    return {"mediaType": descriptor.media_type, "size": descriptor.size, "digest": descriptor.digest}


def _platform(image: ContainerImage) -> Any:
    from ramet.oci.documents import Platform

    return Platform(*(image.record.platform or host_platform_text()).split("/"))


def _config(image: ContainerImage, made: Squashed) -> dict[str, Any]:
    """Return the image's configuration for a registry, without times: the same image gives the same bytes."""
    platform = _platform(image)
    document: dict[str, Any] = {
        "architecture": platform.architecture,
        "os": platform.os,
        "config": _execution(image.config),
        "rootfs": {"type": "layers", "diff_ids": [made.diff_id]},
        "history": [{"created_by": _MADE_BY}],
    }
    if platform.variant:
        document["variant"] = platform.variant
    return document


def _execution(config: ImageConfig) -> dict[str, Any]:
    members = {
        "Entrypoint": list(config.entrypoint),
        "Cmd": list(config.cmd),
        "Env": list(config.env),
        "User": config.user,
        "WorkingDir": config.working_dir,
        "StopSignal": config.stop_signal,
        "ExposedPorts": {port: {} for port in config.exposed_ports},
        "Volumes": {path: {} for path in config.volumes},
        "Labels": config.labels,
    }
    return {name: value for name, value in members.items() if value}
