"""The library of a home: container images by name and digest, built once, removed when nobody needs them.

Instances have hard links to an image's files, so removing an image disturbs none of them. Builds share a lock
that a prune holds alone: nothing vanishes between its look-up and its use. Another lock, held for
milliseconds, keeps names and records together.
"""

from __future__ import annotations

import difflib
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from ramet.errors import LockBusyError, NotFoundError, UsageError
from ramet.images.layers.limits import DEFAULT_LIMITS, Limits
from ramet.images.library.build import build
from ramet.images.library.names import canonical_name, host_platform_text, require_name
from ramet.images.library.places import Places
from ramet.images.library.records import ContainerImage, ImageRecord, LayerNote, Material, NameRecord
from ramet.images.library.removal import Pruned, prune, remove, remove_leftovers
from ramet.images.library.shelf import Shelf
from ramet.system import threads
from ramet.system.clock import now
from ramet.system.files import filesystem_errors
from ramet.system.locks import file_lock, file_lock_sync, inode_lock

_BUILD_WAIT_S: Final = 3600.0
_PRUNE_WAIT_S: Final = 60.0
_NAMES_WAIT_S: Final = 30.0
_SHORTEST_PREFIX: Final = 4


class Library:
    """The container images below one directory. Processes share it.

    `part_digest` computes the digest that a capture lists for a file (`memory.integrity.digest`).
    """

    def __init__(
        self, root: Path, *, part_digest: Callable[[Path], str], limits: Limits = DEFAULT_LIMITS
    ) -> None:
        self._places = Places(root)
        self._shelf = Shelf(self._places)
        self._part_digest = part_digest
        self._limits = limits

    def find(self, reference: str, *, platform: str = "") -> ContainerImage | None:
        """Return the image with that name, digest, or unique beginning of a digest; None if there is none.

        A name is read as Docker reads it: `app` is `app:latest`, and `app@sha256:…` is that content. Of a
        registry's image the variant for `platform` is returned, by default this machine's. Its files are
        looked at when it is used. Raises `UsageError` when several digests begin so.
        """
        if (entry := self.entry(reference, platform=platform)) is not None:
            record = self._shelf.record(entry.digest)
            return None if record is None else self._image(entry.name, record)
        _, at, digest = reference.partition("@")
        if at:
            return self._by_content(reference, digest, platform)
        digits = reference.removeprefix("sha256:")
        if len(digits) < _SHORTEST_PREFIX or not set(digits) <= set("0123456789abcdef"):
            return None
        found = self._shelf.digests(digits)
        if len(found) > 1:
            raise UsageError(
                f"{len(found)} images have digests that begin with {digits}",
                hint=f"give more digits: {', '.join(digest[7:23] for digest in found[:4])}",
            )
        record = self._shelf.record(found[0]) if found else None
        return None if record is None else self._image(record.digest, record)

    def get(self, reference: str, *, platform: str = "") -> ContainerImage:
        """Return the image as `find` does. Raises `NotFoundError`, with a near name."""
        if (image := self.find(reference, platform=platform)) is not None:
            return image
        raise NotFoundError(
            f"there is no image {reference!r} in this home",
            hint=self.near(reference) or "`ramet image ls` lists what there is",
        )

    def near(self, reference: str) -> str | None:
        """Return a question for a name that is nearly that of an image; None if there is none."""
        names = [entry.name for entry in self._shelf.names()]
        near = difflib.get_close_matches(canonical_name(reference), names, n=1)
        return f"did you mean {near[0]}?" if near else None

    def entry(self, name: str, *, platform: str = "") -> NameRecord | None:
        """Return the record of a name: one that was given here, else the registry's for that platform."""
        wanted = platform or host_platform_text()
        return self._shelf.name(canonical_name(name)) or self._shelf.name(canonical_name(name), wanted)

    def is_local(self, name: str) -> bool:
        """Tell whether that name was given here, so that no registry is asked for it."""
        entry = self._shelf.name(canonical_name(name))
        return entry is not None and entry.is_local

    def is_whole(self, image: ContainerImage) -> bool:
        """Tell by sizes, marks and times whether an image's files are whole. Reads those in doubt."""
        return not self.damage(image)

    def damage(self, image: ContainerImage, *, reads_all: bool = False) -> list[str]:
        """Tell what is wrong with an image's files, a sentence each, by sizes, marks and times.

        Doubtful files, with `reads_all` all of them, are read and compared with their digests.
        """
        found = ((base, self._places.why_damaged(base, reads_all=reads_all)) for base in image.bases)
        return [f"its file {self._places.blob(base)} {why}" for base, why in found if why is not None]

    def images(self) -> list[tuple[list[NameRecord], ContainerImage]]:
        """List all images with their names, newest first. An image may have no name any more."""
        return [
            (names, self._image(names[0].name if names else record.digest, record))
            for names, record in self._shelf.images()
        ]

    def has_layer(self, diff_id: str, blob: str) -> bool:
        """Tell whether that archive's layer was kept, so that an image is built without it."""
        note = self._note(diff_id)
        return note is not None and blob in note.blobs

    async def add(
        self, material: Material, *, name: str | None, is_local: bool, index_digest: str = ""
    ) -> ContainerImage:
        """Build an image, unless the library has it whole, and give it a name.

        One process builds, others that want the same image wait for it. Raises `DamagedError`,
        `FilesystemError`, `LockBusyError`; the library and the name are as before then.
        """
        if name is not None:
            require_name(name)
        await self._remove_leftovers()
        async with self.using(), self.alone(material.digest or f"name {name}"):
            record = self._shelf.record(material.digest) if material.digest else None
            if record is None or not await threads.run(self.is_whole, self._image("", record)):
                make = partial(
                    build, self._places, material, part_digest=self._part_digest, limits=self._limits
                )
                record = await threads.run(make)
            image = self._image(record.digest, record)
            if name is None:
                return image
            given = await self.give(name, image, is_local=is_local, index_digest=index_digest)
            if given is None:  # a `remove` came between
                raise NotFoundError(f"the image {name} was removed while it was made", hint="try again")
            return given

    async def give(
        self, name: str, image: ContainerImage, *, is_local: bool, index_digest: str = ""
    ) -> ContainerImage | None:
        """Give an image of the library another name; an image that had the name loses it.

        None if the image has been removed meanwhile. Raises `UsageError` for a name that can't be.
        """
        require_name(name)
        entry = NameRecord(
            name=canonical_name(name),
            digest=image.digest,
            is_local=is_local,
            updated_at=now(),
            platform="" if is_local else image.record.platform or host_platform_text(),
            index_digest=index_digest,
        )
        is_given = await threads.run(self._give, entry)
        return self._image(entry.name, image.record) if is_given else None

    @asynccontextmanager
    async def alone(self, what: str) -> AsyncIterator[None]:
        """Hold the lock on an image that is fetched or built, so that this happens once."""
        await threads.run(self._places.make)
        busy = LockBusyError(
            f"another process hasn't finished the image {what} within {_BUILD_WAIT_S:g} s",
            hint="try again later",
        )
        async with AsyncExitStack() as stack:
            with filesystem_errors("make a lock in", self._places.locks):
                lock = file_lock(self._places.lock(what), wait_s=_BUILD_WAIT_S, busy=busy)
                await stack.enter_async_context(lock)
            yield

    @asynccontextmanager
    async def using(self) -> AsyncIterator[None]:
        """Keep all files of the library there inside: a prune waits. Nests."""
        await threads.run(self._places.make)
        busy = LockBusyError("images are being pruned", hint="try again later")
        async with inode_lock(self._places.blobs, shared=True, wait_s=_BUILD_WAIT_S, busy=busy):
            yield

    @asynccontextmanager
    async def scratch(self) -> AsyncIterator[Path]:
        """Yield an empty directory for the files of an import, which goes afterwards, also after a kill.

        Raises `FilesystemError`.
        """
        await self._remove_leftovers()
        async with self.using():
            with filesystem_errors("make a directory in", self._places.root):
                directory = Path(tempfile.mkdtemp(prefix=self._places.MAKING, dir=self._places.root))
            try:
                yield directory
            finally:
                shutil.rmtree(directory, ignore_errors=True)

    async def remove(self, reference: str, *, force: bool = False) -> ContainerImage:
        """Take a name away, or by a digest the image; without a name left the image goes, too.

        Its files stay as long as other images need them; `prune` removes what nobody needs. Raises
        `NotFoundError`; `UsageError` for a digest whose image has several names, unless `force` is set.
        """
        image = self.get(reference)

        def work() -> None:
            with self._names_locked():
                remove(self._shelf, reference, image.digest, force=force)

        await threads.run(work)
        return image

    async def prune(self) -> Pruned:
        """Remove images without a name, and files that no image needs. Instances keep theirs by their links.

        Waits for builds to end. Raises `LockBusyError`, `FilesystemError`.
        """
        if not self._places.root.is_dir():
            return Pruned(0, 0, 0)
        await threads.run(self._places.make)
        busy = LockBusyError(
            "images are being pulled or built", hint="`ramet image prune` works when that has ended"
        )
        async with inode_lock(self._places.blobs, shared=False, wait_s=_PRUNE_WAIT_S, busy=busy):
            return await threads.run(self._prune)

    def _prune(self) -> Pruned:
        with self._names_locked():
            return prune(self._shelf)

    async def _remove_leftovers(self) -> None:
        """Remove what killed builds have left, unless somebody builds: then the next one does it."""
        await threads.run(self._places.make)
        if next(self._places.root.glob(f"{self._places.MAKING}*"), None) is None:
            return
        try:
            async with inode_lock(self._places.blobs, shared=False, wait_s=0):
                await threads.run(remove_leftovers, self._places)
        except LockBusyError:
            return

    def _give(self, entry: NameRecord) -> bool:
        with self._names_locked():
            if self._shelf.record(entry.digest) is None:
                return False
            self._shelf.give(entry)
            return True

    @contextmanager
    def _names_locked(self) -> Iterator[None]:
        with ExitStack() as stack:
            with filesystem_errors("make a lock in", self._places.root):
                stack.enter_context(file_lock_sync(self._places.names_lock, wait_s=_NAMES_WAIT_S))
            yield

    def _by_content(self, reference: str, digest: str, platform: str) -> ContainerImage | None:
        """Return the image that has that digest, or that an index with that digest names for the platform."""
        record = self._shelf.record(digest)
        if record is None:
            wanted = platform or host_platform_text()
            for entry in self._shelf.names():
                if entry.index_digest == digest and entry.platform == wanted:
                    record = self._shelf.record(entry.digest)
        return None if record is None else self._image(canonical_name(reference), record)

    def _note(self, diff_id: str) -> LayerNote | None:
        note = self._places.note(diff_id)
        parts = (self._places.entries(diff_id), self._places.small(diff_id))
        return note if all(path.is_file() for path in parts) else None

    def _image(self, name: str, record: ImageRecord) -> ContainerImage:
        return ContainerImage(name=name, record=record, blobs=self._places.blobs)
