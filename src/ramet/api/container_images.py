"""The part of a Host that deals with container images."""

from __future__ import annotations

import builtins
from typing import Literal

from ramet.api import images
from ramet.api.arguments import public
from ramet.calls import calls_into_host
from ramet.engine.context import Context
from ramet.engine.lifecycle import containers, image_entries
from ramet.images.library.obtain import fetch, prune
from ramet.model.images import ImageEntry, ImageInspection, PrunedImages
from ramet.system import threads

Pull = Literal["missing", "never", "always"]


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
        image_entries.require_removable(image)
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
