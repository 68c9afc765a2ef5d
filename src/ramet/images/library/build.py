"""An image built of its layers: one pass over each, then the image's own file, then all published at once.

A large layer's pages are its blob already while they are unpacked, so they take no further space; other
layers' pages are freed while the image's own file is written. What the library has of a layer isn't written
again, nor unpacked if its archive is known. Nothing has its final name before it is whole and synced, and
the image's record comes last (I2).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Final

import msgspec

from ramet.errors import DamagedError
from ramet.images.erofs.blob import BLOCK_BYTES, mark, seal, shared_layers
from ramet.images.erofs.image import write_image
from ramet.images.layers.contents import LayerContents
from ramet.images.layers.limits import DEFAULT_LIMITS, Limits
from ramet.images.layers.merge import Merge
from ramet.images.layers.read import add_layer
from ramet.images.library.entries import Recorder, file_digest, replay
from ramet.images.library.places import Places, set_published
from ramet.images.library.records import (
    FORMAT,
    ImageRecord,
    Layer,
    LayerNote,
    LayerRecord,
    Material,
    blob_name,
)
from ramet.model.record import Base
from ramet.progress import report
from ramet.system import threads
from ramet.system.clock import now
from ramet.system.files import filesystem_errors, new_file, write_all
from ramet.system.publishing import fsync_directory, sync

_MOST_LAYERS: Final = 512


class _Disagreement(Exception):
    """A layer has another length than its blob: another version wrote that, so it isn't used."""


def build(
    places: Places, material: Material, *, part_digest: Callable[[Path], str], limits: Limits = DEFAULT_LIMITS
) -> ImageRecord:
    """Build an image and publish it. Blocks; for a worker thread.

    `part_digest` computes the digest that a capture lists for a file. Raises `DamagedError` for layers that
    are damaged or hostile, `FilesystemError` when the disk is full; then the library is as before.
    """
    if not material.layers or len(material.layers) > _MOST_LAYERS:
        raise DamagedError(
            f"{material.source} has {len(material.layers)} layers, where 1 to {_MOST_LAYERS} are expected"
        )
    for reuses in (True, False):
        with filesystem_errors("build the image in", places.root):
            making = Path(tempfile.mkdtemp(prefix=places.MAKING, dir=places.root))
        try:
            return _Build(places, making, material, part_digest, limits, reuses=reuses).run()
        except _Disagreement:
            continue
        finally:
            shutil.rmtree(making, ignore_errors=True)
    raise AssertionError("without reuse there is nothing to disagree with")


class _Build:
    def __init__(
        self,
        places: Places,
        making: Path,
        material: Material,
        part_digest: Callable[[Path], str],
        limits: Limits,
        *,
        reuses: bool,
    ) -> None:
        self._places = places
        self._making = making
        self._material = material
        self._part_digest = part_digest
        self._limits = limits
        self._reuses = reuses
        self._merge = Merge(limits)
        self._contents: dict[int, LayerContents] = {}
        self._pages: dict[int, int] = {}
        self._notes: dict[int, LayerNote] = {}
        self._parts: dict[int, tuple[str, str]] = {}
        """The digests of the entries and the small files of the new device's layers."""
        self._diff_ids: list[str] = []
        self._inodes = 0

    def run(self) -> ImageRecord:
        with ExitStack() as files:
            for number, layer in enumerate(self._material.layers):
                self._read(files, number, layer)
            devices = shared_layers({number: part.blocks for number, part in self._contents.items()})
            for number in self._contents.keys() - set(devices):
                self._contents[number].free_what_is_read()
            bases = self._write(files, devices)
        record = self._record(devices, bases)
        with filesystem_errors("build the image in", self._places.root):
            # Written before anything is published: from here on a full disk has little to prevent.
            self._write_small("record", msgspec.json.format(msgspec.json.encode(record)))
            for number, base in zip(devices, bases[1:], strict=True):
                self._write_note(number, base)
        with filesystem_errors("publish the image in", self._places.root):
            for base in bases:
                self._publish(base)
            fsync_directory(self._places.blobs)
            for number in devices:
                self._publish_layer(number)
            (self._making / "record").rename(self._places.manifest(record.digest))
            fsync_directory(self._places.manifests)
        return record

    def _read(self, files: ExitStack, number: int, layer: Layer) -> None:
        note = self._places.note(layer.diff_id) if self._reuses and layer.diff_id else None
        if note is not None:
            self._notes[number] = note
            if layer.blob in note.blobs and self._replay(files, number, note):
                self._diff_ids.append(note.diff_id)
                return
        with filesystem_errors("build the image in", self._places.root):
            small = self._file(files, f"small-{number}")
            if note is None:
                self._pages[number] = self._file(files, f"pages-{number}")
            contents = self._contents[number] = LayerContents(
                number,
                pages=self._pages.get(number),
                small=small,
                blob=None if note is None else _opened(files, self._places.blob(note.base)),
            )
            recorder = Recorder(self._merge, self._file(files, f"entries-{number}"))
            with closing(self._reported(number, layer)) as chunks:
                diff_id = add_layer(
                    recorder,
                    contents,
                    chunks,
                    name=layer.name,
                    diff_id=layer.diff_id,
                    limits=self._limits,
                )
            entries_digest = recorder.finish()
            if note is not None and note.base.blocks != contents.blocks:
                raise _Disagreement
            if len(shared_layers({number: contents.blocks})):
                self._parts[number] = (entries_digest, file_digest(small))
        self._diff_ids.append(diff_id)

    def _replay(self, files: ExitStack, number: int, note: LayerNote) -> bool:
        """Merge a layer that was kept. False, with nothing merged, if a file of it isn't what it was."""
        try:
            entries = _opened(files, self._places.entries(note.diff_id))
            small = _opened(files, self._places.small(note.diff_id))
            blob = _opened(files, self._places.blob(note.base))
            if (file_digest(entries), file_digest(small)) != (note.entries_digest, note.small_digest):
                return False
        except OSError:
            return False
        contents = LayerContents.kept(number, blob=blob, blocks=note.base.blocks, small=small)
        self._contents[number] = contents
        with filesystem_errors("read", self._places.entries(note.diff_id)):
            replay(self._merge, entries, layer=number)
        return True

    def _file(self, files: ExitStack, name: str) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(self._making / name, flags, 0o600)
        files.callback(os.close, descriptor)
        return descriptor

    def _write(self, files: ExitStack, devices: tuple[int, ...]) -> list[Base]:
        """Write the image's own file and seal it and the new blobs. Returns the devices."""
        with filesystem_errors("build the image in", self._places.root):
            own = self._file(files, "image")
            facts = write_image(self._merge.root, self._contents, own, devices=devices)
            self._inodes = facts.inodes
            blocks = facts.size_bytes // BLOCK_BYTES
            write_all(own, mark(blocks, facts.digest), facts.size_bytes)
            found = [self._made("image", own, blocks, facts.digest)]
            for number in devices:
                if (note := self._notes.get(number)) is not None:
                    found.append(note.base)
                    continue
                contents, pages = self._contents[number], self._pages[number]
                seal(contents, pages)
                found.append(self._made(f"pages-{number}", pages, contents.blocks, contents.digest))
        return [
            msgspec.structs.replace(base, name=f"base{number}", file=f"base{number}.erofs")
            for number, base in enumerate(found)
        ]

    def _made(self, file: str, descriptor: int, blocks: int, digest: str) -> Base:
        """Finish a device's file, under the name that it will have."""
        sync(descriptor)
        os.fchmod(descriptor, 0o444)
        digits = digest.removeprefix("sha256:")
        path = (self._making / file).rename(self._making / blob_name(digits))
        set_published(path)
        return Base(name="", file="", blocks=blocks, digest=digits, part_digest=self._part_digest(path))

    def _record(self, devices: tuple[int, ...], bases: list[Base]) -> ImageRecord:
        layers = tuple(
            LayerRecord(
                diff_id=diff_id,
                size_bytes=self._contents[number].blocks * BLOCK_BYTES,
                base=1 + devices.index(number) if number in devices else None,
            )
            for number, diff_id in enumerate(self._diff_ids)
        )
        return ImageRecord(
            format=FORMAT,
            digest=self._material.digest or _identity(self._material, self._diff_ids),
            config=self._material.config,
            layers=layers,
            bases=tuple(bases),
            source=self._material.source,
            platform=self._material.platform,
            created_at=now(),
            inodes=self._inodes,
            dropped_xattrs=self._merge.dropped.xattrs,
            dropped_devices=self._merge.dropped.whiteout_devices,
        )

    def _publish(self, base: Base) -> None:
        made = self._making / blob_name(base.digest)
        if not made.exists():
            return
        if self._places.why_damaged(base, reads_all=True) is None:
            made.unlink()  # another build's, with the same content
        else:
            made.rename(self._places.blobs / made.name)

    def _write_note(self, number: int, base: Base) -> None:
        """Write what is known of a layer that wasn't replayed."""
        if (parts := self._parts.get(number)) is None:
            return
        layer, note = self._material.layers[number], self._notes.get(number)
        blobs = set(() if note is None else note.blobs) | ({layer.blob} if layer.blob else set())
        kept = LayerNote(
            format=FORMAT,
            diff_id=self._diff_ids[number],
            base=base,
            blobs=tuple(sorted(blobs)),
            entries_digest=parts[0],
            small_digest=parts[1],
        )
        self._write_small(f"note-{number}", msgspec.json.encode(kept))

    def _publish_layer(self, number: int) -> None:
        """Keep what another image with that layer needs. The note comes last, with digests of all."""
        if number not in self._parts:
            return
        diff_id = self._diff_ids[number]
        for made, place in (
            (f"entries-{number}", self._places.entries(diff_id)),
            (f"small-{number}", self._places.small(diff_id)),
            (f"note-{number}", self._places.layer(diff_id)),
        ):
            (self._making / made).chmod(0o444)
            (self._making / made).replace(place)

    def _write_small(self, name: str, content: bytes) -> None:
        with new_file(self._making / name, 0o444) as descriptor:
            write_all(descriptor, content, 0)
            sync(descriptor)

    def _reported(self, number: int, layer: Layer) -> Generator[bytes]:
        count = len(self._material.layers)
        stage = f"unpacking layer {number + 1} of {count}" if count > 1 else "unpacking"
        return _reported(layer.open(), stage, layer.size_bytes)


def _opened(files: ExitStack, path: Path) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    files.callback(os.close, descriptor)
    return descriptor


def _identity(material: Material, diff_ids: list[str]) -> str:
    """Return the identity of an image that has no manifest: a digest of its configuration and its layers."""
    described = {"config": material.config, "layers": diff_ids}
    return f"sha256:{hashlib.sha256(msgspec.json.encode(described, order='deterministic')).hexdigest()}"


def _reported(chunks: Iterable[bytes], stage: str, total: int) -> Generator[bytes]:
    done = 0
    try:
        for chunk in chunks:
            threads.check_cancelled()
            yield chunk
            done += len(chunk)
            report(stage, done, max(done, total) if total else 0)
    finally:
        if isinstance(chunks, Generator):
            chunks.close()  # its file, at once also when this ends early
