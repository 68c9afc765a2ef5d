"""The part of a Host that deals with container images."""

from __future__ import annotations

import builtins
import os

import msgspec

from ramet.api import images
from ramet.api.arguments import public
from ramet.calls import calls_into_host
from ramet.engine.context import Context
from ramet.engine.lifecycle import containers, image_entries
from ramet.images.library.obtain import fetch, prune
from ramet.images.library.push import push_image
from ramet.images.sources.load import import_image
from ramet.model.images import ImageEntry, ImageInspection, ImportedImage, PrunedImages, PushedImage
from ramet.system import threads


@calls_into_host()
class ContainerImages:
    """Base of the Host, which has `_opened`."""

    @property
    def _opened(self) -> Context:
        raise NotImplementedError

    @public
    async def pull(self, image: str, *, platform: str | None = None) -> ImageInspection:
        """Pull a container image from its registry, and return its description.

        `image` is a reference as Docker has it: `python`, `python:3.13-slim`, `host:5000/app@sha256:…`.
        `platform` is `OS/ARCHITECTURE[/VARIANT]`, this machine's unless given. What the home has already
        isn't fetched; a tag that has moved then names the new image. Raises `NotFoundError` for an image, a
        tag or a platform that isn't there; `RegistryLoginError`; `RegistryError` when the registry can't be
        asked; `DamagedError` for content that isn't its digest's, or a hostile archive; `UsageError` for a
        text that is no reference, or the name of an imported image; `FilesystemError`. Then the home's images
        are as before, and the next pull resumes.
        """
        context = self._opened
        library = containers.library_of(context)
        pulled = await fetch(library, containers.downloads_of(context), image, platform=platform)
        return await threads.run(image_entries.inspection, context, pulled)

    @public
    async def import_image(
        self,
        source: str | os.PathLike[str],
        *,
        name: str | None = None,
        ref: str | None = None,
        platform: str | None = None,
    ) -> ImportedImage:
        """Make a container image of something on this machine, and return its description.

        `source` is an OCI layout (directory or archive), an archive of `docker save` or `podman save`, a
        root filesystem as tar (compressed or not) or as a directory; `-` is standard input; `docker:NAME` and
        `podman:NAME` ask these programs. `name` is the image's new name, by default its own, or the last part
        of the path. `ref` chooses one of several images in an archive, `platform` one of several variants.
        Raises `UsageError` for what isn't understood, `NotFoundError`, `DamagedError` for a damaged or
        hostile archive, `UnavailableError` for a missing program, `FilesystemError`. Then the home's images
        are as before.
        """
        context = self._opened
        library = containers.library_of(context)
        made = await import_image(library, str(source), name=name, ref=ref, platform=platform)
        shown = await threads.run(image_entries.inspection, context, made.image)
        return ImportedImage(
            **msgspec.structs.asdict(shown),
            skipped_sockets=made.skipped.sockets,
            skipped_mounts=made.skipped.mounts,
        )

    @public
    async def push_image(self, image: str, target: str) -> PushedImage:
        """Put an image of this home into a registry, by the name `target`.

        An image that was pulled arrives byte for byte, with its digest; one that was imported is packed as
        one layer, and `PushedImage.squashed` says why. Raises `NotFoundError` for no such image; `UsageError`
        for a target that is no reference; `RegistryLoginError`, `RegistryError`, `DamagedError` for an image
        that isn't whole, `FilesystemError`. Then the registry's tag is as before.
        """
        image_entries.require_in_library(image)
        context = self._opened
        library, downloads = containers.library_of(context), containers.downloads_of(context)
        pushed = await push_image(library, downloads, image, target)
        return PushedImage(
            name=image,
            reference=pushed.reference,
            digest=pushed.digest,
            sent_bytes=pushed.sent_bytes,
            size_bytes=pushed.size_bytes,
            squashed=pushed.squashed,
        )

    @public
    async def images(self) -> builtins.list[ImageEntry]:
        """List the images: the home's container images, newest first, then those that ramet makes itself.

        An image with several names has an entry for each. Raises `UnavailableError` when no path is known for
        the cache.
        """
        context = self._opened
        entries = await threads.run(image_entries.entries, context)
        return [*entries, *await images.list_images()]

    @public
    async def image(self, image: str) -> ImageInspection:
        """Return everything about an image: its configuration, layers and files.

        `image` is a name, a digest, or 4 or more first digits of one. No registry is asked. Raises
        `NotFoundError`; `UsageError` when several digests begin so.
        """
        if containers.is_built_in(image):
            return await images.inspect_image(image)
        context = self._opened
        return await threads.run(lambda: image_entries.inspection(context, image_entries.get(context, image)))

    @public
    async def remove_image(self, image: str, *, force: bool = False) -> str:
        """Take a name from an image, and remove the image with its last name. Returns its digest.

        By a digest, an image with one name is removed; one with several only with `force`. Instances that
        were made from it keep their files and keep running. Files that other images have stay for these; the
        rest takes room until `prune_images`. Raises `NotFoundError`; `UsageError` for an image with several
        names, and for an image that ramet makes itself; `FilesystemError`.
        """
        image_entries.require_in_library(image)
        removed = await containers.library_of(self._opened).remove(image, force=force)
        return removed.digest

    @public
    async def prune_images(self) -> PrunedImages:
        """Remove images without a name, files that no image needs, and what pulls have downloaded.

        Instances keep their files. Raises `LockBusyError` while an image is pulled or imported, and
        `FilesystemError`: what was removed by then stays so.
        """
        context = self._opened
        count, files, freed = await prune(containers.library_of(context), containers.downloads_of(context))
        return PrunedImages(images=count, files=files, freed_bytes=freed)
