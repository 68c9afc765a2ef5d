"""The part of a Host that deals with container images."""

from __future__ import annotations

import builtins
import os
from typing import Final

import msgspec

from ramet.api import images
from ramet.api.arguments import public
from ramet.calls import calls_into_host
from ramet.engine.boot_snapshots import cache
from ramet.engine.boot_snapshots.make import make
from ramet.engine.context import Context
from ramet.engine.lifecycle import boot, containers, image_entries, removal
from ramet.errors import UnavailableError
from ramet.guest.agent_binary import agent_path
from ramet.images.container import container_boot_image
from ramet.images.library.obtain import fetch, prune
from ramet.images.library.push import push_image
from ramet.images.library.records import ContainerImage
from ramet.images.sources.load import import_image
from ramet.model.images import ImageEntry, ImageInspection, ImportedImage, PrunedImages, PushedImage
from ramet.system import threads
from ramet.units import parse_size

MEMORY: Final = "256M"
"""The memory of a guest unless `run` is told another."""


@calls_into_host()
class ContainerImages:
    """Base of the Host, which has `_opened`."""

    @property
    def _opened(self) -> Context:
        raise NotImplementedError

    @public
    async def pull(
        self, image: str, *, platform: str | None = None, prepare: bool = False
    ) -> ImageInspection:
        """Pull a container image from its registry, and return its description.

        `image` is a reference as Docker has it: `python`, `python:3.13-slim`, `host:5000/app@sha256:…`.
        `platform` is `OS/ARCHITECTURE[/VARIANT]`, this machine's unless given. What the home has already
        isn't fetched; a tag that has moved then names the new image. Raises `NotFoundError` for an image, a
        tag or a platform that isn't there; `RegistryLoginError`; `RegistryError` when the registry can't be
        asked; `DamagedError` for content that isn't its digest's, or a hostile archive; `UsageError` for a
        text that is no reference, or the name of an imported image; `FilesystemError`. Then the home's images
        are as before, and the next pull resumes.

        With `prepare`, a guest of it is booted and kept as a boot snapshot, so that the first `run` is quick,
        too: with the memory and CPUs that `run` gives by default. Raises also what `run` raises, and
        `UnavailableError` when there can be no boot snapshot; the image is in the home then.
        """
        context = self._opened
        library = containers.library_of(context)
        pulled = await fetch(library, containers.downloads_of(context), image, platform=platform)
        if prepare:
            await self._prepare(pulled.digest)
        return await threads.run(_inspection, context, pulled)

    async def _prepare(self, digest: str) -> None:
        """Make the boot snapshot of an image in the library, unless there is one."""
        context = self._opened
        idle = containers.Wishes(idle=True)
        container = await containers.container_of(context, digest, idle, pull="never")
        image = await threads.run(container_boot_image, agent_path)
        record = await boot.create(context, boot.Wanted(image, parse_size(MEMORY), container=container), make)
        await removal.destroy(context, record)
        if record.boot is not None and record.boot.key is None:
            raise UnavailableError(
                f"{container.image.name} has no boot snapshot: {record.boot.detail}",
                hint="the image is here; `ramet run` boots it each time",
            )

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
        shown = await threads.run(_inspection, context, made.image)
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
        context = self._opened
        if containers.is_built_in(image):
            shown = await images.inspect_image(image)
            booted = await threads.run(cache.of_image, context, shown.name, None)
            return msgspec.structs.replace(shown, boot_snapshots=booted)
        return await threads.run(lambda: _inspection(context, image_entries.get(context, image)))

    @public
    async def remove_image(self, image: str, *, force: bool = False) -> str:
        """Take a name from an image, and remove the image with its last name. Returns its digest.

        By a digest, an image with one name is removed; one with several only with `force`. Instances that
        were made from it keep their files and keep running. Files that other images have stay for these; the
        rest takes room until `prune_images`. Raises `NotFoundError`; `UsageError` for an image with several
        names, and for an image that ramet makes itself; `FilesystemError`.
        """
        image_entries.require_in_library(image)
        library = containers.library_of(self._opened)
        removed = await library.remove(image, force=force)
        await cache.remove_of_images(
            self._opened, lambda digest: digest == removed.digest and library.find(digest) is None
        )
        return removed.digest

    @public
    async def prune_images(self) -> PrunedImages:
        """Remove images without a name, files that no image needs, and what pulls have downloaded.

        Boot snapshots of images that aren't here any more go, too. Instances keep their files. Raises
        `LockBusyError` while an image is pulled or imported, and `FilesystemError`: what was removed by then
        stays so.
        """
        context = self._opened
        library = containers.library_of(context)
        named = {image.digest for names, image in await threads.run(library.images) if names}
        # First: their links would keep files from being freed.
        booted, more = await cache.remove_of_images(context, lambda digest: digest not in named)
        count, files, freed = await prune(library, containers.downloads_of(context))
        return PrunedImages(images=count, files=files, freed_bytes=freed + more, boot_snapshots=booted)


def _inspection(context: Context, image: ContainerImage) -> ImageInspection:
    booted = cache.of_image(context, image.name, image.digest)
    return msgspec.structs.replace(image_entries.inspection(context, image), boot_snapshots=booted)
