"""The library of a home: container images by name and digest, built once, removed when nobody needs them.

Instances have hard links to an image's files, so removing an image disturbs none of them. Builds share a lock
that a prune holds alone: no blob vanishes between its look-up and its use.
"""

from __future__ import annotations

import difflib
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from ramet.errors import LockBusyError, NotFoundError, UsageError
from ramet.images.erofs.blob import BLOCK_BYTES
from ramet.images.library.build import build
from ramet.images.library.places import Places
from ramet.images.library.records import FORMAT, ContainerImage, ImageRecord, Material, NameRecord
from ramet.system import threads
from ramet.system.clock import now
from ramet.system.files import allocated_bytes, filesystem_errors
from ramet.system.locks import file_lock, inode_lock
from ramet.system.publishing import fsync_directory, write_durably

_BUILD_WAIT_S: Final = 3600.0
_PRUNE_WAIT_S: Final = 60.0
_SHORTEST_PREFIX: Final = 4
_LONGEST_NAME: Final = 255


class Pruned(NamedTuple):
    """Counts of what a prune removed."""

    images: int
    files: int
    bytes: int


class Library:
    """The container images below one directory. Processes share it.

    `part_digest` computes the digest that a capture lists for a file (`memory.integrity.digest`).
    """

    def __init__(self, root: Path, *, part_digest: Callable[[Path], str]) -> None:
        self._places = Places(root)
        self._part_digest = part_digest

    def find(self, reference: str) -> ContainerImage | None:
        """Return the image with that name, digest, or unique beginning of a digest; None if there is none.

        Its files are looked at when it is used. Raises `UsageError` when several digests begin so.
        """
        named = self._name(reference)
        if named is not None:
            record = self._record(named.digest)
            return None if record is None else self._image(reference, record)
        digits = reference.removeprefix("sha256:")
        if len(digits) < _SHORTEST_PREFIX or not set(digits) <= set("0123456789abcdef"):
            return None
        found = sorted(path.stem for path in self._places.manifests.glob(f"{digits}*.json"))
        if len(found) > 1:
            raise UsageError(
                f"{len(found)} images have digests that begin with {digits}",
                hint=f"give more digits: {', '.join(name[:16] for name in found[:4])}",
            )
        record = self._record(f"sha256:{found[0]}") if found else None
        return None if record is None else self._image(reference, record)

    def get(self, reference: str) -> ContainerImage:
        """Return the image as `find` does. Raises `NotFoundError`, with a near name."""
        if (image := self.find(reference)) is not None:
            return image
        near = difflib.get_close_matches(reference, [entry.name for entry in self.names()], n=1)
        hint = f"did you mean {near[0]}?" if near else "`ramet image ls` lists them"
        raise NotFoundError(f"there is no image {reference!r} in this home", hint=hint)

    def is_whole(self, image: ContainerImage) -> bool:
        """Tell by sizes and marks whether all files of an image are there."""
        return all(self._places.why_damaged(base) is None for base in image.bases)

    def names(self) -> list[NameRecord]:
        """List all names whose record can be read, sorted."""
        found = []
        for path in self._files(self._places.names, "*.json"):
            try:
                found.append(msgspec.json.decode(path.read_bytes(), type=NameRecord))
            except (OSError, msgspec.MsgspecError):
                continue  # a name that can't be read is no name: it is given again by the next pull
        return sorted(found, key=lambda entry: entry.name)

    def is_local(self, name: str) -> bool:
        """Tell whether that name was given here, so that no registry is asked for it."""
        entry = self._name(name)
        return entry is not None and entry.is_local

    def images(self) -> list[tuple[list[str], ContainerImage]]:
        """List all images with their names, newest first. An image may have no name any more."""
        names: dict[str, list[str]] = {}
        for entry in self.names():
            names.setdefault(entry.digest, []).append(entry.name)
        stems = [path.stem for path in self._files(self._places.manifests, "*.json")]
        records = [self._record(f"sha256:{stem}") for stem in stems]
        found = []
        for record in sorted(filter(None, records), key=lambda record: record.created_at, reverse=True):
            its = names.get(record.digest, [])
            found.append((its, self._image((its or [record.digest])[0], record)))
        return found

    def sharing(self) -> Counter[str]:
        """Count the images that have each device, by its digest."""
        return Counter(base.digest for _, image in self.images() for base in image.bases)

    def size_of(self, digest: str) -> int:
        """Return the bytes that a device occupies on the disk; 0 when its file is missing."""
        try:
            return allocated_bytes(self._places.blobs / f"{digest}.erofs")
        except OSError:
            return 0

    async def add(self, material: Material, *, name: str | None, is_local: bool) -> ContainerImage:
        """Build an image, unless the library has it whole, and give it a name.

        One process builds, others that want the same image wait for it. Raises `DamagedError`,
        `FilesystemError`, `LockBusyError`; the library and the name are as before then.
        """
        if name is not None:
            _require_name(name)
        await threads.run(self._places.make)
        async with self._held(), self.alone(material.digest or f"name {name}"):
            record = self._record(material.digest) if material.digest else None
            if record is None or not self.is_whole(self._image("", record)):
                make = partial(build, self._places, material, part_digest=self._part_digest)
                record = await threads.run(make)
            if name is not None:
                self._give(name, record.digest, is_local=is_local)
        return self._image(name or record.digest, record)

    async def give(self, name: str, image: ContainerImage, *, is_local: bool) -> ContainerImage:
        """Give an image of the library another name; an image that had the name loses it."""
        _require_name(name)
        await threads.run(lambda: self._give(name, image.digest, is_local=is_local))
        return self._image(name, image.record)

    @asynccontextmanager
    async def alone(self, what: str) -> AsyncIterator[None]:
        """Hold the lock on an image that is fetched or built, so that this happens once."""
        await threads.run(self._places.make)
        busy = LockBusyError(
            f"another process hasn't finished the image {what} within {_BUILD_WAIT_S:g} s",
            hint="try again later",
        )
        async with file_lock(self._places.lock(what), wait_s=_BUILD_WAIT_S, busy=busy):
            yield

    def remove(self, reference: str) -> ContainerImage:
        """Take a name away, or by a digest all names of an image; without a name left the image goes, too.

        Its files stay as long as other images need them; `prune` removes what nobody needs. Raises
        `NotFoundError`.
        """
        image = self.get(reference)
        by_name = self._name(reference) is not None
        left = [entry.name for entry in self.names() if entry.digest == image.digest]
        for name in [reference] if by_name else left:
            with filesystem_errors("remove", self._places.name(name)):
                self._places.name(name).unlink(missing_ok=True)
        if not by_name or left == [reference]:
            with filesystem_errors("remove", self._places.manifest(image.digest)):
                self._places.manifest(image.digest).unlink(missing_ok=True)
        return image

    async def prune(self, *, unnamed: bool = True) -> Pruned:
        """Remove images without a name, and files that no image needs. Instances keep theirs by their links.

        Waits for builds to end. Raises `LockBusyError`, `FilesystemError`.
        """
        if not self._places.root.is_dir():
            return Pruned(0, 0, 0)
        await threads.run(self._places.make)
        busy = LockBusyError("images are being built", hint="try again when that has ended")
        async with inode_lock(self._places.blobs, shared=False, wait_s=_PRUNE_WAIT_S, busy=busy):
            return await threads.run(lambda: self._prune(unnamed=unnamed))

    def _prune(self, *, unnamed: bool) -> Pruned:
        removed = 0
        if unnamed:
            for names, image in self.images():
                if not names:
                    self._places.manifest(image.digest).unlink(missing_ok=True)
                    removed += 1
        needed = self.sharing()
        files = freed = 0
        for path in self._files(self._places.blobs, "*.erofs"):
            if path.stem not in needed:
                freed += allocated_bytes(path) if path.stat().st_nlink == 1 else 0
                path.unlink()
                files += 1
        for note in self._files(self._places.layers, "*.json"):
            try:
                base = msgspec.json.decode(note.read_bytes(), type=_Blob)
            except msgspec.MsgspecError:
                base = _Blob("")
            if base.digest not in needed:
                note.unlink()
        for left in self._places.root.glob(f"{self._places.MAKING}*"):  # nobody builds now
            shutil.rmtree(left, ignore_errors=True)
        return Pruned(removed, files, freed)

    @asynccontextmanager
    async def _held(self) -> AsyncIterator[None]:
        busy = LockBusyError("images are being pruned", hint="try again later")
        async with inode_lock(self._places.blobs, shared=True, wait_s=_BUILD_WAIT_S, busy=busy):
            yield

    def _image(self, name: str, record: ImageRecord) -> ContainerImage:
        return ContainerImage(name=name, record=record, blobs=self._places.blobs)

    def _record(self, digest: str) -> ImageRecord | None:
        try:
            record = msgspec.json.decode(self._places.manifest(digest).read_bytes(), type=ImageRecord)
        except (OSError, msgspec.MsgspecError):
            return None  # it is built again when it is next wanted
        return record if record.format == FORMAT else None

    def _name(self, name: str) -> NameRecord | None:
        try:
            entry = msgspec.json.decode(self._places.name(name).read_bytes(), type=NameRecord)
        except (OSError, msgspec.MsgspecError):
            return None
        return entry if entry.name == name else None

    def _give(self, name: str, digest: str, *, is_local: bool) -> None:
        entry = NameRecord(name=name, digest=digest, is_local=is_local, updated_at=now())
        write_durably(self._places.name(name), msgspec.json.format(msgspec.json.encode(entry)))
        fsync_directory(self._places.names)

    @staticmethod
    def _files(directory: Path, pattern: str) -> Iterator[Path]:
        return (path for path in sorted(directory.glob(pattern)) if not path.name.startswith("."))


class _Blob(msgspec.Struct):
    digest: str


def _require_name(name: str) -> None:
    if not 0 < len(name) <= _LONGEST_NAME or not name.isprintable() or name != name.strip() or name[0] == "-":
        raise UsageError(
            f"{name!r} can't be the name of an image", hint="give it a name such as app or app:1.2"
        )


def image_bytes(image: ContainerImage) -> int:
    """Return the length of all of an image's devices."""
    return sum((base.blocks + 1) * BLOCK_BYTES for base in image.bases)
