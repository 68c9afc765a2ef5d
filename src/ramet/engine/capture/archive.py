"""A capture as one file: out of its directory, and into a new directory.

`system/archive.py` knows the bytes (docs/reference/archive.md). This module knows captures: the parts that
they may have, and the manifest's facts about each part. Both directions block, so they run in a worker
thread.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from ramet.engine.manifest import Manifest, Part, check_part, decode_manifest, files_there, is_part_name
from ramet.errors import DamagedError, FilesystemError
from ramet.memory.compressed import read_table, unpack
from ramet.memory.integrity import (
    PartFacts,
    SparseDigest,
    changed,
    current_facts,
    differences,
    digest,
    facts_of,
)
from ramet.system.archive import ArchiveFacts, write_archive
from ramet.system.archive_format import MAX_MANIFEST_BYTES, MAX_PARTS, go_on
from ramet.system.archive_reader import ArchiveReader
from ramet.system.files import filesystem_errors, free_bytes, new_file, open_regular
from ramet.system.publishing import fsync_directory, sync
from ramet.system.zeros import not_zeros
from ramet.units import TIB, format_bytes

MOST_MEMORY_BYTES: Final = 16 * TIB
_AGAIN: Final = "export it again"


class Imported(NamedTuple):
    """A capture that has come whole."""

    manifest: Manifest
    """With the new files' facts and the old digests: what belongs beside them, once its id is decided."""
    exported: bytes
    """The manifest as it came."""


def export_capture(
    directory: Path,
    manifest: bytes,
    out: int,
    *,
    to: str = "the export",
    checkpoint: Callable[[], None] = go_on,
) -> ArchiveFacts:
    """Write the capture in `directory`, whose manifest is `manifest`, to the descriptor `out`.

    `out` is a file, a pipe or a socket. Holes and zeros take no room in it. All parts are opened and checked
    against the manifest before anything is written. From then on the capture may be removed or compacted: the
    opened files are exported. `to` is the destination's name in errors; `checkpoint` is called often and may
    raise to give up (`threads.check_cancelled`).

    Raises, with nothing written, `DamagedError` when a part isn't (any more) what the manifest says: a caller
    that then finds another manifest in the directory may try again with that. Raises `FilesystemError` when
    writing fails, also when nobody reads the pipe any more (EPIPE). `import_capture` refuses what was written
    by then.
    """
    facts = _checked_manifest(manifest, f"the manifest in {directory}")
    with ExitStack() as opened:
        parts = []
        for name in archived_files(facts):
            path = directory / name
            with filesystem_errors("read", path):
                try:
                    descriptor = opened.enter_context(open_regular(path))
                except OSError:
                    # Missing, or a link: `_check` has better words.
                    _check(facts, directory, name)
                    raise
                _check(facts, directory, name)
                # The file under the name was checked; it must be the open file.
                same = os.path.samestat(os.fstat(descriptor), path.lstat())
            if not same:
                raise DamagedError(f"{path} was replaced at this moment", hint="try again")
            parts.append((name, descriptor))
        return write_archive(out, manifest, parts, to=to, checkpoint=checkpoint)


def archived_files(manifest: Manifest) -> list[str]:
    """List the files of a capture for an archive, in order: compressed memory replaces raw memory."""
    compressed = manifest.memory.compressed
    if compressed is None:
        return list(manifest.parts)
    return [compressed.file if name == manifest.memory.base else name for name in manifest.parts]


def _check(manifest: Manifest, directory: Path, file: str) -> None:
    if file in manifest.parts:
        check_part(manifest, directory, file)
        return
    present, published = current_facts(directory / file), manifest.facts_of(file)
    if present.size_bytes != published.size_bytes:
        raise changed(directory / file, differences(present, published))


def import_capture(
    stream: int,
    directory: Path,
    *,
    name: str = "the import",
    mode: Callable[[str], int] = lambda _part: 0o444,
    checkpoint: Callable[[], None] = go_on,
) -> Imported:
    """Make `directory`, which must not exist, with the parts of the capture that comes from `stream`.

    `stream` is a descriptor of a file, a pipe or a socket. Nothing in it is trusted: names, sizes, order, the
    digest of the stream and of each part are checked, and that there is room before anything is written. The
    parts are synced and have the permission bits that `mode` gives for their names. The directory has no
    manifest yet: the caller writes `Imported.manifest` into it, publishes it by a rename, and before that
    decides whether it trusts what the parts say to a VMM (a qcow2 file can name a backing file).

    `name` is the stream's name in errors. Raises `DamagedError`, `UnavailableError` (a newer format),
    `FilesystemError`, and what `checkpoint` raises; the directory is removed then.
    """
    reader = ArchiveReader(stream, name=name, checkpoint=checkpoint)
    manifest = _checked_manifest(reader.manifest, f"the manifest in {name}")
    logical_bytes = sum(manifest.facts_of(file).size_bytes for file in archived_files(manifest))
    if reader.data_bytes > logical_bytes:
        raise DamagedError(
            f"{name} is damaged: {reader.data_bytes} bytes of data for parts of {logical_bytes}", hint=_AGAIN
        )
    with filesystem_errors("make", directory):
        free = free_bytes(directory.parent)
        if free is not None and free < reader.data_bytes:
            raise FilesystemError(
                f"can't import {name} into {directory.parent}: up to {format_bytes(reader.data_bytes)} are "
                f"needed, {format_bytes(free)} are free",
                hint="free some space on that filesystem",
            )
        directory.mkdir(mode=0o700)
    try:
        _receive(reader, manifest, directory, name, mode)
        unpacked_bytes = 0
        for part, what in manifest.parts.items():
            checkpoint()
            if manifest.memory.compressed is not None and part == manifest.memory.base:
                actual, unpacked_bytes = _unpacked(manifest, directory, name, checkpoint)
            else:
                actual = digest(directory / part)
            if actual != what.digest:
                raise DamagedError(f"{part} in {name} isn't what its manifest says: digest", hint=_AGAIN)
        fsync_directory(directory)
        ours = with_new_facts(_as_unpacked_here(manifest, unpacked_bytes, mode), directory)
        return Imported(ours, reader.manifest)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise


def _as_unpacked_here(manifest: Manifest, unpacked_bytes: int, mode: Callable[[str], int]) -> Manifest:
    """Return the manifest with the facts that a mem-file will have after decompression here.

    Another machine's facts aren't taken.
    """
    base = manifest.memory.base
    if manifest.memory.compressed is None:
        return manifest
    facts = PartFacts(
        size_bytes=manifest.parts[base].facts.size_bytes,
        allocated_bytes=unpacked_bytes,
        mode=mode(base),
        mtime_ns=time.time_ns(),
    )
    part = msgspec.structs.replace(manifest.parts[base], facts=facts)
    return msgspec.structs.replace(manifest, parts={**manifest.parts, base: part})


def _unpacked(
    manifest: Manifest, directory: Path, name: str, checkpoint: Callable[[], None]
) -> tuple[str, int]:
    """Return the digest of received compressed memory, and how many bytes of it aren't holes."""
    compressed = manifest.memory.compressed
    assert compressed is not None
    path, size_bytes = directory / compressed.file, manifest.parts[manifest.memory.base].facts.size_bytes
    total, stored_bytes = SparseDigest(size_bytes), 0
    what = Path(f"{compressed.file} in {name}")  # in messages: the directory goes
    try:
        with filesystem_errors("read", path), open_regular(path) as descriptor:
            for frame in read_table(descriptor, what, size_bytes):
                checkpoint()
                if (data := unpack(descriptor, what, frame)) is not None:
                    total.stretch(frame.start, data)
                    stretches = not_zeros(memoryview(data), frame.start)
                    stored_bytes += sum(last - first for first, last in stretches)
    except DamagedError as error:
        raise DamagedError(error.message, hint=_AGAIN) from error
    return total.text, stored_bytes


def with_new_facts(manifest: Manifest, directory: Path) -> Manifest:
    """Return `manifest` with the present facts of the parts in `directory`; digests and all else stay.

    For copies whose content is known to be the same. Raises `FilesystemError`, `DamagedError`.
    """
    there = files_there(manifest, directory)
    parts = {
        name: Part(facts=facts_of(directory / name), digest=part.digest) if name in there else part
        for name, part in manifest.parts.items()
    }
    compressed = manifest.memory.compressed
    if compressed is not None:
        facts = facts_of(directory / compressed.file)
        manifest = manifest.with_compressed(msgspec.structs.replace(compressed, facts=facts))
    return msgspec.structs.replace(manifest, parts=parts)


def _checked_manifest(encoded: bytes, name: str) -> Manifest:
    """Decode a manifest, and check that a capture can have such parts."""
    if len(encoded) > MAX_MANIFEST_BYTES:
        raise DamagedError(f"{name} has {len(encoded)} bytes, more than {MAX_MANIFEST_BYTES}")
    manifest = decode_manifest(encoded, where=name)
    if len(manifest.parts) > MAX_PARTS:
        raise DamagedError(f"{name} names {len(manifest.parts)} parts, more than {MAX_PARTS}")
    for file in manifest.files:
        if not is_part_name(file):
            raise DamagedError(f"{name} names {file!r}, which no part of a capture is called")
    base = manifest.memory.base if manifest.memory.compressed is not None else None
    if base is not None and base not in manifest.parts:
        raise DamagedError(f"{name} lists no part {base!r}, which is compressed", hint=_AGAIN)
    for file in manifest.files:
        size_bytes = manifest.facts_of(file).size_bytes
        # Compressed memory is decompressed up to the manifest's size, for any received file.
        is_packed = file == base
        if size_bytes < 0 or (is_packed and size_bytes > MOST_MEMORY_BYTES):
            raise DamagedError(f"{name} gives {file} {size_bytes} bytes", hint=_AGAIN)
    return manifest


def _receive(
    reader: ArchiveReader, manifest: Manifest, directory: Path, name: str, mode: Callable[[str], int]
) -> None:
    """Receive all parts, in the manifest's order, and the end of the archive."""
    for part in archived_files(manifest):
        expected = (part, manifest.facts_of(part).size_bytes)
        if (arrived := reader.next_part()) != expected:
            raise DamagedError(
                f"{name} is damaged: {_shown(arrived)} comes where {_shown(expected)} should", hint=_AGAIN
            )
        path = directory / part
        with filesystem_errors("write", path), new_file(path) as descriptor:
            reader.receive(descriptor)
            os.fchmod(descriptor, mode(part))
            sync(descriptor)
    if (arrived := reader.next_part()) is not None:
        raise DamagedError(
            f"{name} is damaged: {_shown(arrived)} comes, which its manifest doesn't name", hint=_AGAIN
        )


def _shown(part: tuple[str, int] | None) -> str:
    return "its end" if part is None else f"part {part[0]!r} of {part[1]} bytes"
