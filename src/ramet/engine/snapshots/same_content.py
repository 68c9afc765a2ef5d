"""Snapshots with the same content: an import of existing content is that snapshot, or shares its parts."""

from __future__ import annotations

import filecmp
from collections.abc import Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

import msgspec

from ramet.engine.context import Context
from ramet.engine.manifest import Manifest, check_part, parts_there, read_manifest
from ramet.errors import RametError
from ramet.images.library.places import Places
from ramet.memory.integrity import changed, current_facts, differences
from ramet.model.record import Base
from ramet.model.snapshot import SnapshotRecord
from ramet.system.publishing import temporary_beside


def key_of(manifest: Manifest) -> str | None:
    """Return the identity of a capture's content: equal for captures of one source with equal content.

    None when a part has no digest.
    """
    digests = {name: part.digest for name, part in manifest.parts.items()}
    if manifest.source is None or None in digests.values():
        return None
    machine = (manifest.driver, manifest.driver_version, manifest.machine, manifest.arguments, manifest.ram)
    memory = manifest.with_compressed(None).memory  # the same, however it is kept
    capture = (manifest.source.id, manifest.generation, memory, sorted(digests.items()))
    return blake2b(msgspec.json.encode((machine, capture)), digest_size=16).hexdigest()


def same_as(
    context: Context, rows: Sequence[SnapshotRecord], manifest: Manifest
) -> tuple[SnapshotRecord, Manifest] | None:
    """Return the snapshot that has the content of `manifest`, and its manifest; None when none has."""
    key = key_of(manifest)
    if key is None or manifest.source is None:
        return None
    for row in rows:
        if row.source == manifest.source.id:
            with suppress(RametError):  # removed meanwhile, or damaged: nothing is shared with that one
                other = read_manifest(context.home.snapshot(row.id))
                if key_of(other) == key:
                    there = context.home.snapshot(row.id)
                    for part in parts_there(other, there):
                        check_part(other, there, part)
                    if (packed := other.memory.compressed) is not None:
                        path = there / packed.file
                        if differing := differences(current_facts(path), packed.facts):
                            raise changed(path, differing)
                    return row, other
    return None


def share_compressed(source: Path, its: Manifest, directory: Path, manifest: Manifest) -> Manifest:
    """Replace `directory`'s own compressed memory by a link to that of `source`.

    Returns the manifest that names the link. If either has no compressed memory, or it can't be linked,
    returns `manifest` unchanged.
    """
    theirs, ours = its.memory.compressed, manifest.memory.compressed
    if theirs is None or ours is None:
        return manifest
    linked = temporary_beside(directory / theirs.file)
    try:
        linked.hardlink_to(source / theirs.file)
        # A capture keeps its own file, which was read when it came, unless the other one is the same.
        if filecmp.cmp(linked, directory / ours.file, shallow=False):
            linked.replace(directory / theirs.file)
            if theirs.file != ours.file:
                (directory / ours.file).unlink()
            return manifest.with_compressed(theirs)
    except (OSError, RametError):
        pass  # as in `share_parts`
    linked.unlink(missing_ok=True)
    return manifest


def share_bases(places: Places, directory: Path, bases: Sequence[Base]) -> None:
    """Replace a container image's parts in `directory` by links to the library's files with the same content.

    Otherwise as `share_parts`.
    """
    for base in bases:
        if places.why_damaged(base) is None:
            _share(places.blob(base), directory / base.file)


def share_parts(source: Path, directory: Path, parts: Sequence[str]) -> None:
    """Replace parts in `directory` by links to the parts of `source` with the same content.

    A file that can't be linked stays unchanged, and so does a file that isn't equal byte by byte: it was read
    when it came, and the other file may have been damaged since. It costs its space, and nothing else.
    """
    for part in parts:
        _share(source / part, directory / part)


def _share(other: Path, own: Path) -> None:
    linked = temporary_beside(own)
    try:
        linked.hardlink_to(other)
        if filecmp.cmp(linked, own, shallow=False):
            linked.replace(own)
    except OSError:
        pass  # the limit on links, or the other one has just been removed: this file is as good
    linked.unlink(missing_ok=True)
