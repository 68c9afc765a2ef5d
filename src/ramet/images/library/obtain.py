"""An image by the text that a user gives: from the library, else from its registry.

A local name never goes to the network. Of a registry's image the library remembers the digest that its
reference had for each platform, so that it is found again without asking anybody.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from ramet.errors import (
    DamagedError,
    FilesystemError,
    NotFoundError,
    RegistryError,
    UnavailableError,
    UsageError,
)
from ramet.images.library.library import Library
from ramet.images.library.names import canonical_name, host_platform_text, platform_text
from ramet.images.library.records import ContainerImage, Layer, Material
from ramet.model.container import ImageConfig
from ramet.oci.reference import Reference
from ramet.system import threads
from ramet.system.files import filesystem_errors
from ramet.units import MIB

if TYPE_CHECKING:
    from ramet.oci.documents import Config, Platform
    from ramet.oci.pull import PulledImage

Pull = Literal["missing", "never", "always"]
_CHUNK_BYTES: Final = 1 * MIB


async def obtain(
    library: Library,
    cache_directory: Path,
    text: str,
    *,
    pull: Pull = "missing",
    platform: str | None = None,
) -> ContainerImage:
    """Return the image that `text` names: a local name, a digest, or a registry's reference.

    `pull` says when a registry is asked: if the library hasn't got the image, `never`, or `always` (its tag
    may have moved; a digest can't move). `platform` is another than this machine's, such as `linux/arm64`.
    Raises `NotFoundError`, `DamagedError` for a local image that isn't whole, `UnavailableError` for an image
    of another platform than guests have here, `UsageError` for a text that is no reference, and what a pull
    and a build raise.
    """
    wanted = host_platform_text() if platform is None else platform_text(str(parse_platform(platform)))
    image = library.find(text, platform=wanted)
    if library.is_local(text):
        if image is None:
            raise DamagedError(
                f"the record of the image {text} is damaged or another version's", hint="import it again"
            )
        return await _require_usable(library, image, wanted)
    if image is not None:
        is_content = "@" in text or image.name == image.digest  # found by a digest
        is_asked = pull == "always" and not is_content
        # By its digest alone no registry is known that has it.
        if not is_asked and (
            pull == "never" or image.name == image.digest or await threads.run(library.is_whole, image)
        ):
            return await _require_usable(library, image, wanted)
    elif pull == "never":
        raise NotFoundError(
            f"the image {text} isn't in this home, and no registry may be asked for it (--pull never)",
            hint=library.near(text) or f"`ramet pull {text}` gets it; `ramet image ls` lists what there is",
        )
    try:
        return await fetch(library, cache_directory, text, platform=platform)
    except (RegistryError, NotFoundError) as error:
        if image is None:
            raise
        if not (damage := await threads.run(library.damage, image)):
            hint = "; or ".join(filter(None, (error.hint, "use what is here: --pull missing")))
            raise type(error)(error.message, hint=hint) from error
        raise DamagedError(
            f"the image {image.name} is damaged: {damage[0]}; and it can't be pulled again: {error.message}",
            hint=error.hint,
        ) from error


async def fetch(
    library: Library, cache_directory: Path, text: str, *, platform: str | None = None
) -> ContainerImage:
    """Pull an image from its registry, and build it if it isn't in the library. Raises as `obtain`.

    Raises `UsageError` for a local name, which is nobody's in a registry.
    """
    from ramet.oci.downloads import KEPT_BYTES, trim, using

    reference = Reference.parse(text)
    wanted = None if platform is None else parse_platform(platform)
    if library.is_local(text):
        raise UsageError(
            f"{canonical_name(text)} is an image that was imported, so no registry is asked for it",
            hint="import it again under another name (--name) if that name shall be a registry's",
        )
    async with library.alone(f"{reference} {platform or ''}"), library.using(), using(cache_directory):
        try:
            image = await _fetch(library, cache_directory, reference, wanted)
        except NotFoundError as error:
            near = library.near(text)
            raise NotFoundError(error.message, hint=near or error.hint) from error
    await trim(cache_directory, most_bytes=KEPT_BYTES)
    return image


async def _fetch(
    library: Library, cache_directory: Path, reference: Reference, platform: Platform | None
) -> ContainerImage:
    from ramet.oci.blobs import BlobCache
    from ramet.oci.pull import pull as pull_image

    def is_known(digest: object) -> bool:
        known = library.find(str(digest))
        return known is not None and library.is_whole(known)

    cache = BlobCache(cache_directory)
    pulled = await pull_image(
        reference, cache, platform=platform, is_known=is_known, has_layer=library.has_layer
    )
    try:
        return await _keep(library, pulled, reference)
    except _LayerGoneError:
        pass  # the library lost meanwhile what it had: a `remove`, or a damaged file
    except DamagedError:
        # A layer in the cache may be wrong although its size is right. Those are fetched once more.
        if not await cache.drop_wrong(pulled.manifest.layers):
            raise
    return await _keep(library, await pull_image(reference, cache, platform=platform), reference)


async def _keep(library: Library, pulled: PulledImage, reference: Reference) -> ContainerImage:
    material = _material(pulled)
    for path in pulled.layers:
        with suppress(OSError):
            os.utime(path)  # the least recently used go first
    index = str(pulled.digest)
    return await library.add(material, name=reference.familiar, is_local=False, index_digest=index)


def parse_platform(text: str) -> Platform:
    """Parse `OS/ARCHITECTURE[/VARIANT]`. Raises `UsageError`."""
    from ramet.oci.documents import Platform

    parts = text.split("/")
    if not 2 <= len(parts) <= 3 or not all(parts):
        raise UsageError(f"{text!r} is no platform", hint="write OS/ARCHITECTURE, as in linux/amd64")
    return Platform(*parts)


def image_config(config: Config) -> ImageConfig:
    """Return the part of an OCI configuration that guests are run by."""
    execution = config.config
    if execution is None:
        return ImageConfig()
    return ImageConfig(
        entrypoint=tuple(execution.entrypoint or ()),
        cmd=tuple(execution.cmd or ()),
        env=tuple(execution.env or ()),
        user=execution.user or "",
        working_dir=execution.working_dir or "",
        stop_signal=execution.stop_signal or "",
        exposed_ports=tuple(sorted(execution.exposed_ports or ())),
        volumes=tuple(sorted(execution.volumes or ())),
        labels=execution.labels or {},
        has_healthcheck=bool(execution.healthcheck),
    )


def read_file(path: Path) -> Iterator[bytes]:
    """Yield a file's content in pieces. Raises `FilesystemError`."""
    with filesystem_errors("read", path), path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


class _LayerGoneError(FilesystemError):
    """A layer's archive isn't in the cache, because the library had the layer when it was pulled."""


def _read_layer(path: Path) -> Iterator[bytes]:
    if not path.exists():
        raise _LayerGoneError(f"{path} is gone", hint="pull the image again")
    yield from read_file(path)


def _material(pulled: PulledImage) -> Material:
    name = pulled.reference.familiar
    parts = zip(pulled.manifest.layers, pulled.config.rootfs.diff_ids, pulled.layers, strict=True)
    layers = [
        Layer(
            f"layer {descriptor.digest[:19]}… of {name}",
            diff_id,
            partial(_read_layer, path),
            descriptor.size,
            descriptor.digest,
        )
        for descriptor, diff_id, path in parts
    ]
    return Material(
        image_config(pulled.config),
        layers,
        str(pulled.manifest_digest),
        str(pulled.reference),
        platform_text(str(pulled.config.platform)),
    )


async def _require_usable(library: Library, image: ContainerImage, wanted: str) -> ContainerImage:
    if image.record.platform and platform_text(image.record.platform) != wanted:
        raise UnavailableError(
            f"the image {image.name} is for {image.record.platform}, not for {wanted}",
            hint="pull or import it for this platform, or say which one is meant: --platform",
        )
    if damage := await threads.run(library.damage, image):
        raise DamagedError(
            f"the image {image.name} is damaged: {damage[0]}",
            hint="pull or import it again; instances that were made of it keep their files",
        )
    return image


async def prune(library: Library, cache_directory: Path) -> tuple[int, int, int]:
    """Remove what no name leads to, and all downloads. Returns (images, files, bytes).

    Images and instances need no download. Raises `LockBusyError` while an image is pulled or built.
    """
    from ramet.oci.downloads import clear

    pruned = await library.prune()
    files, freed = await clear(cache_directory)
    return pruned.images, pruned.files + files, pruned.bytes + freed
