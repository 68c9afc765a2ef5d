"""Removal: names, images without a name, files that no image needs, and what killed processes left.

The callers hold the locks (`library`). Rows go first, then files (I2): a removal that is cut short leaves
files that nobody needs, which the next prune removes.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import msgspec

from ramet.errors import NotFoundError, UsageError
from ramet.images.library.names import canonical_name
from ramet.images.library.places import Places
from ramet.images.library.records import LayerNote
from ramet.images.library.shelf import Shelf, files
from ramet.system.files import TEMPORARY_PREFIX, allocated_bytes, filesystem_errors


class Pruned(NamedTuple):
    """Counts of what a prune removed. `bytes` are those that the disk has free again."""

    images: int
    files: int
    bytes: int


def remove(shelf: Shelf, reference: str, digest: str, *, force: bool) -> None:
    """Take a name away, or all names of an image, and the image with the last.

    Raises `UsageError` for a digest whose image has several names, unless `force` is set; `NotFoundError`.
    """
    places = shelf.places
    entries = shelf.names()
    taken = [entry for entry in entries if entry.name == canonical_name(reference)]
    if not taken:
        taken = [entry for entry in entries if entry.digest == digest]
        names = sorted({entry.name for entry in taken})
        if len(names) > 1 and not force:
            raise UsageError(
                f"the image {reference} has {len(names)} names: {', '.join(names[:8])}",
                hint="remove one of its names, or all of them and the image with --force",
            )
        if shelf.record(digest) is None:
            raise NotFoundError(f"the image {reference} is gone already")
    with filesystem_errors("remove the image from", places.root):
        for entry in taken:
            places.name(entry.name, entry.platform).unlink(missing_ok=True)
        left = {entry.digest for entry in shelf.names()}
        for gone in {digest, *(entry.digest for entry in taken)} - left:
            places.manifest(gone).unlink(missing_ok=True)


def prune(shelf: Shelf) -> Pruned:
    """Remove everything that no name leads to. Raises `FilesystemError`."""
    places = shelf.places
    with filesystem_errors("prune", places.root):
        unnamed = [record for names, record in shelf.images() if not names]
        for record in unnamed:
            places.manifest(record.digest).unlink(missing_ok=True)
        needed = _needed(places)
        for entry in shelf.names():
            if not entry.is_local and not places.manifest(entry.digest).exists():
                places.name(entry.name, entry.platform).unlink(missing_ok=True)
        removed = freed = 0
        for path in [*files(places.blobs, "*.erofs"), *_unneeded_notes(places, needed)]:
            if path.parent != places.blobs or path.stem not in needed:
                freed += _freed_by(path)
                removed += 1
        freed += remove_leftovers(places)
        _remove_free_locks(places.locks)
    return Pruned(len(unnamed), removed, freed)


def remove_leftovers(places: Places) -> int:
    """Remove what killed processes have left. Nobody builds now. Returns the freed bytes."""
    freed = 0
    for left in places.root.glob(f"{places.MAKING}*"):
        freed += sum(allocated_bytes(path) for path in left.iterdir() if path.is_file())
        shutil.rmtree(left, ignore_errors=True)
    for directory in places.directories:
        for path in directory.glob(f"{TEMPORARY_PREFIX}*"):
            freed += _freed_by(path)
    return freed


class _Device(msgspec.Struct):
    digest: str


class _Devices(msgspec.Struct):
    """The part of an image's record that all versions have."""

    bases: list[_Device]


def _needed(places: Places) -> set[str]:
    """List the devices that images need, another version's included; remove records that say nothing."""
    needed: set[str] = set()
    for path in files(places.manifests, "*.json"):
        try:
            record = msgspec.json.decode(path.read_bytes(), type=_Devices)
        except msgspec.MsgspecError:
            path.unlink(missing_ok=True)
        else:
            needed |= {base.digest for base in record.bases}
    return needed


def _unneeded_notes(places: Places, needed: set[str]) -> list[Path]:
    """List what is kept of layers whose blob no image needs."""
    kept: set[Path] = set()
    for path in files(places.layers, "*.json"):
        try:
            note = msgspec.json.decode(path.read_bytes(), type=LayerNote)
        except (OSError, msgspec.MsgspecError):
            continue  # a note that says nothing is of no use: its layer is unpacked when it is next wanted
        if note.base.digest in needed:
            kept |= {path, places.entries(note.diff_id), places.small(note.diff_id)}
    return [path for path in files(places.layers, "*") if path not in kept]


def _freed_by(path: Path) -> int:
    """Remove a file. Returns the bytes that this frees: none while an instance has a link to it."""
    try:
        freed = allocated_bytes(path) if path.lstat().st_nlink == 1 else 0
        path.unlink()
    except FileNotFoundError:
        return 0
    return freed


def _remove_free_locks(directory: Path) -> None:
    """Remove the files of locks that nobody holds; who waits for one takes it anew (`system.locks`)."""
    for path in files(directory, "*"):
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
        except BlockingIOError:
            continue
        finally:
            os.close(descriptor)
