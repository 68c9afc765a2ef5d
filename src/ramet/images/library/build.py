"""An image built of its layers: one pass over each, then the image's own file, then all published at once.

A large layer's pages are its blob already while they are unpacked, so they take no further space; other
layers' contents are there twice until the image's own file is written. Blobs that the library has aren't
written again. Nothing has its final name before it is whole and synced, and the record comes last (I2).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
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
from ramet.images.library.places import Places
from ramet.images.library.records import FORMAT, ImageRecord, Layer, LayerRecord, Material, blob_name
from ramet.model.record import Base
from ramet.progress import report
from ramet.system import threads
from ramet.system.clock import now
from ramet.system.files import filesystem_errors, write_all
from ramet.system.publishing import fsync_directory, sync, write_durably

_MOST_LAYERS: Final = 512


class _Reused(Exception):
    """A layer's blob, which was there, isn't one of this image's devices, so its pages are needed."""


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
    making = Path(tempfile.mkdtemp(prefix=places.MAKING, dir=places.root))
    try:
        try:
            return _Build(places, making, material, part_digest, limits, reuses=True).run()
        except _Reused:
            shutil.rmtree(making)
            making.mkdir(mode=0o700)
            return _Build(places, making, material, part_digest, limits, reuses=False).run()
    finally:
        shutil.rmtree(making, ignore_errors=True)


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
        self._known: dict[int, Base] = {}
        self._diff_ids: list[str] = []
        self._inodes = 0

    def run(self) -> ImageRecord:
        with ExitStack() as files:
            for number, layer in enumerate(self._material.layers):
                self._read(files, number, layer)
            devices = shared_layers({number: part.blocks for number, part in self._contents.items()})
            if self._known.keys() - set(devices):
                raise _Reused
            bases = self._write(files, devices)
        record = self._record(devices, bases)
        with filesystem_errors("publish the image in", self._places.root):
            for base in bases:
                self._publish(base)
            fsync_directory(self._places.blobs)
            for number in devices:
                self._remember(number, bases[1 + devices.index(number)])
        write_durably(
            self._places.manifest(record.digest), msgspec.json.format(msgspec.json.encode(record)), mode=0o444
        )
        fsync_directory(self._places.manifests)
        return record

    def _read(self, files: ExitStack, number: int, layer: Layer) -> None:
        known = self._places.blob_of_layer(layer.diff_id) if self._reuses and layer.diff_id else None
        if known is not None:
            self._known[number] = known
        small = self._file(files, f"small-{number}")
        pages = None if known is not None else self._file(files, f"pages-{number}")
        if pages is not None:
            self._pages[number] = pages
        contents = self._contents[number] = LayerContents(number, pages=pages, small=small)
        count = len(self._material.layers)
        stage = f"unpacking layer {number + 1} of {count}" if count > 1 else "unpacking"
        with filesystem_errors("unpack into", self._making):
            diff_id = add_layer(
                self._merge,
                contents,
                _reported(layer.open(), stage, layer.size_bytes),
                name=layer.name,
                diff_id=layer.diff_id,
                limits=self._limits,
            )
        if known is not None and known.blocks != contents.blocks:
            raise _Reused  # of another version's writer
        self._diff_ids.append(diff_id)

    def _file(self, files: ExitStack, name: str) -> int:
        with filesystem_errors("make", self._making / name):
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            descriptor = os.open(self._making / name, flags, 0o600)
        files.callback(os.close, descriptor)
        return descriptor

    def _write(self, files: ExitStack, devices: tuple[int, ...]) -> list[Base]:
        """Write the image's own file and seal it and the new blobs. Returns the devices."""
        report("writing the image")
        own = self._file(files, "image")
        with filesystem_errors("write the image in", self._making):
            facts = write_image(self._merge.root, self._contents, own, devices=devices)
            self._inodes = facts.inodes
            blocks = facts.size_bytes // BLOCK_BYTES
            write_all(own, mark(blocks, facts.digest), facts.size_bytes)
            sealed = [("image", own, blocks, facts.digest)]
            for number in devices:
                if number not in self._known:
                    contents = self._contents[number]
                    seal(contents, self._pages[number])
                    sealed.append((f"pages-{number}", self._pages[number], contents.blocks, contents.digest))
            made: dict[str, Base] = {}
            for file, descriptor, blocks, digest in sealed:
                sync(descriptor)
                os.fchmod(descriptor, 0o444)
                digits = digest.removeprefix("sha256:")
                (self._making / file).rename(self._making / blob_name(digits))
                made[file] = Base(
                    name="",
                    file="",
                    blocks=blocks,
                    digest=digits,
                    part_digest=self._part_digest(self._making / blob_name(digits)),
                )
        found = [made["image"]]
        found += [self._known.get(number) or made[f"pages-{number}"] for number in devices]
        return [
            msgspec.structs.replace(base, name=f"base{number}", file=f"base{number}.erofs")
            for number, base in enumerate(found)
        ]

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
            created_at=now(),
            inodes=self._inodes,
            dropped_xattrs=self._merge.dropped.xattrs,
            dropped_devices=self._merge.dropped.whiteout_devices,
        )

    def _publish(self, base: Base) -> None:
        made = self._making / blob_name(base.digest)
        if not made.exists():
            return
        if self._places.why_damaged(base) is None:
            made.unlink()  # another build's, with the same content
        else:
            made.rename(self._places.blobs / made.name)

    def _remember(self, number: int, base: Base) -> None:
        """Note the blob of a layer, so that other images with that layer needn't write it."""
        if number not in self._known:
            write_durably(self._places.layer(self._diff_ids[number]), msgspec.json.encode(base))


def _identity(material: Material, diff_ids: list[str]) -> str:
    """Return the identity of an image that has no manifest: a digest of its configuration and its layers."""
    described = {"config": material.config, "layers": diff_ids}
    return f"sha256:{hashlib.sha256(msgspec.json.encode(described, order='deterministic')).hexdigest()}"


def _reported(chunks: Iterable[bytes], stage: str, total: int) -> Iterator[bytes]:
    done = 0
    for chunk in chunks:
        threads.check_cancelled()
        yield chunk
        done += len(chunk)
        report(stage, done, max(done, total) if total else 0)
