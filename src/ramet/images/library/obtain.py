"""An image by the text that a user gives: from the library, else from its registry.

A local name never goes to the network. Of a registry's image the library remembers the digest that its
reference had, so that it is found again without asking anybody.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from ramet.errors import DamagedError, NotFoundError, UsageError
from ramet.images.library.library import Library
from ramet.images.library.records import ContainerImage, Layer, Material
from ramet.model.container import ImageConfig
from ramet.oci.reference import Reference
from ramet.units import MIB

if TYPE_CHECKING:
    from ramet.oci.digests import Digest
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
    may have moved). `platform` is another than this machine's, such as `linux/arm64`. Raises
    `NotFoundError`, `DamagedError` for a local image that isn't whole, `UsageError` for a text that is no
    reference, and what a pull and a build raise.
    """
    image = find(library, text)
    if image is not None and library.is_local(image.name):
        return _require_whole(library, image)
    if pull == "never":
        if image is not None:
            return _require_whole(library, image)
        raise NotFoundError(
            f"the image {text} isn't in this home, and no registry may be asked for it (--pull never)",
            hint=f"`ramet pull {text}` gets it; `ramet image ls` lists what is there",
        )
    if image is not None and pull == "missing" and library.is_whole(image):
        return image
    if image is not None and image.name == text and _is_digest(text):
        return _require_whole(library, image)  # by its digest alone no registry is known
    return await fetch(library, cache_directory, text, platform=platform)


def find(library: Library, text: str) -> ContainerImage | None:
    """Return the image of the library that `text` names, as Docker reads it (`app` is `app:latest`)."""
    return library.find(text) or library.find(canonical_name(text))


def canonical_name(text: str) -> str:
    """Return a name with its tag, as the library keeps it; a text that is no reference stays as it is."""
    try:
        return Reference.parse(text).familiar
    except UsageError:
        return text


async def fetch(
    library: Library, cache_directory: Path, text: str, *, platform: str | None = None
) -> ContainerImage:
    """Pull an image from its registry, and build it if it isn't in the library. Raises as `obtain`."""
    from ramet.oci.blobs import BlobCache
    from ramet.oci.pull import pull as pull_image

    reference = Reference.parse(text)
    wanted = None if platform is None else parse_platform(platform)

    def is_known(digest: Digest) -> bool:
        known = library.find(str(digest))
        return known is not None and library.is_whole(known)

    async with library.alone(f"{reference} {platform or ''}"):
        pulled = await pull_image(reference, BlobCache(cache_directory), platform=wanted, is_known=is_known)
        known = library.find(str(pulled.manifest_digest))
        if known is not None and library.is_whole(known):
            return await library.give(reference.familiar, known, is_local=False)
        return await library.add(_material(pulled), name=reference.familiar, is_local=False)


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
    """Yield a file's content in pieces."""
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


def _material(pulled: PulledImage) -> Material:
    name = pulled.reference.familiar
    parts = zip(pulled.manifest.layers, pulled.config.rootfs.diff_ids, pulled.layers, strict=True)
    layers = [
        Layer(
            f"layer {descriptor.digest[:19]}… of {name}", diff_id, partial(read_file, path), descriptor.size
        )
        for descriptor, diff_id, path in parts
    ]
    return Material(image_config(pulled.config), layers, str(pulled.manifest_digest), str(pulled.reference))


def _require_whole(library: Library, image: ContainerImage) -> ContainerImage:
    if library.is_whole(image):
        return image
    raise DamagedError(
        f"the image {image.name} is damaged: a file of it is missing, cut or another's",
        hint="pull or import it again; instances that were made of it keep their files",
    )


def _is_digest(text: str) -> bool:
    return set(text.removeprefix("sha256:")) <= set("0123456789abcdef")
