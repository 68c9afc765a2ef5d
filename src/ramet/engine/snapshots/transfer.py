"""Snapshots that leave as one file, and come as one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import anyio
import msgspec

from ramet.engine.capture.archive import (
    Imported,
    export_capture,
    import_capture,
    with_new_facts,
)
from ramet.engine.context import Context
from ramet.engine.manifest import MANIFEST_TRIES, Manifest, files_there, require_whole
from ramet.engine.snapshots import catalog
from ramet.engine.snapshots.same_content import same_as, share_bases, share_compressed, share_parts
from ramet.engine.snapshots.validation import (
    require_bases,
    require_delta,
    require_disks,
    require_harmless,
)
from ramet.errors import DamagedError, NameTakenError, RametError, UsageError
from ramet.images.library.places import Places
from ramet.model.names import check_name, invent_name
from ramet.model.snapshot import SnapshotRecord
from ramet.paths import MANIFEST_FILE
from ramet.system import threads
from ramet.system.files import filesystem_errors, new_file, open_regular
from ramet.system.locks import file_lock
from ramet.system.publishing import fsync_directory, publish, sync, temporary_beside, write_durably

_OTHERS_S = 60.0
"""Other imports hold the lock while they look for the same content and link its parts."""
_STDIN, _STDOUT = 0, 1
"""The standard streams' descriptors: in a notebook sys.stdin and sys.stdout are no files."""
_EXPORT_AGAIN = "export it again, from a snapshot that `ramet snapshot verify` finds whole"


def named_file(file: str | os.PathLike[str]) -> Path | None:
    """Return the file that a caller names; None for `-`, a standard stream."""
    return None if os.fspath(file) == "-" else Path(file)


async def export_snapshot(context: Context, row: SnapshotRecord, file: Path | None) -> int:
    """Write a snapshot to a new file, durably, or to standard output (None). Returns the number of bytes.

    Raises `DamagedError`, `FilesystemError`, `UsageError` when the file exists; no file is left then.
    """
    directory = context.home.snapshot(row.id)
    if file is not None and os.path.lexists(file):
        raise UsageError(f"{file} exists", hint="choose another name")
    for tries_left in reversed(range(MANIFEST_TRIES)):
        manifest = catalog.origin_of_snapshot(context, row).manifest
        try:
            return await threads.run(_write, directory, manifest, file, waits_for_others=file is None)
        except RametError:
            # Compacted meanwhile: the same memory, in another file.
            if tries_left == 0 or catalog.origin_of_snapshot(context, row).manifest == manifest:
                raise
    raise AssertionError


def _write(directory: Path, manifest: Manifest, file: Path | None) -> int:
    encoded = manifest.encoded()
    check = threads.check_cancelled
    if file is None:
        return export_capture(
            directory, encoded, _STDOUT, to="standard output", checkpoint=check
        ).archive_bytes
    temporary = temporary_beside(file)
    try:
        with filesystem_errors("write", file), new_file(temporary) as out:
            written = export_capture(directory, encoded, out, to=str(file), checkpoint=check).archive_bytes
        _publish_new(temporary, file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return written


def _publish_new(temporary: Path, file: Path) -> None:
    """Give a finished file its name, unless another file has it by now.

    Raises `UsageError`, `FilesystemError`.
    """
    with filesystem_errors("sync", temporary), open_regular(temporary) as descriptor:
        sync(descriptor)
    try:
        file.hardlink_to(temporary)
    except FileExistsError:
        raise UsageError(f"{file} exists", hint="choose another name") from None
    except OSError:
        publish(temporary, file)  # a filesystem without links
        return
    temporary.unlink()
    fsync_directory(file.parent)


async def import_file(context: Context, file: Path | None, *, name: str | None) -> SnapshotRecord:
    """Make a snapshot of an exported file or, for None, of standard input. Nothing in it is believed.

    A snapshot of the same source with the same content (by all digests) is the result itself where no `name`
    is given; with a name a second one is made, which shares its parts. So it is for imports at once.

    Raises `DamagedError`, `UnavailableError`, `FilesystemError`, `NameTakenError`; nothing of it is left
    then.
    """
    if name is not None:
        check_name(name)
    row = catalog.reserve(context, "", "import", name=None, labels={}, nameless=True)
    directory = context.home.snapshot(row.id)
    try:
        imported = await threads.run(
            _read, context, file, directory, waits_for_others=file is None or not file.is_file()
        )
        await threads.run(fsync_directory, context.home.snapshots)
        async with file_lock(context.home.import_lock, wait_s=_OTHERS_S):
            same = same_as(context, catalog.published(context), imported.manifest)
            if same is None:
                return _publish(context, row, imported.manifest, name)
            existing, its_manifest = same
            if name is not None:
                shared_with = context.home.snapshot(existing.id)
                there = files_there(its_manifest, shared_with)
                manifest = await threads.run(
                    _share, shared_with, its_manifest, there, directory, imported.manifest
                )
                return _publish(context, row, manifest, name)
        await catalog.remove(context, row)
        return existing
    except BaseException:
        with anyio.CancelScope(shield=True):
            await catalog.remove(context, row)
        raise


def _share(
    source: Path, its: Manifest, there: Sequence[str], directory: Path, manifest: Manifest
) -> Manifest:
    """Take those parts that a snapshot with the same content has instead of the files that came."""
    share_parts(
        source, directory, [name for name in there if name in manifest.parts and (directory / name).exists()]
    )
    manifest = share_compressed(source, its, directory, manifest)
    fsync_directory(directory)
    shared = with_new_facts(manifest, directory)
    write_durably(directory / MANIFEST_FILE, shared.encoded())
    return shared


def _read(context: Context, file: Path | None, directory: Path) -> Imported:
    with _opened(file) as (stream, what):
        with _from_elsewhere(hints_stay=True):
            imported = import_capture(
                stream, directory, name=what, mode=_mode, checkpoint=threads.check_cancelled
            )
        manifest = imported.manifest
        with _from_elsewhere(hints_stay=False):
            require_whole(manifest, where=f"the manifest in {what}")
            require_harmless(manifest, what)
            context.driver(manifest.driver)  # raises if this ramet doesn't have it
            require_disks(manifest, directory, what)
            require_delta(manifest, directory, what)
            require_bases(manifest, directory, what)
    if manifest.machine.bases:
        share_bases(Places(context.home.images), directory, manifest.machine.bases)
        fsync_directory(directory)
        imported = imported._replace(manifest=with_new_facts(manifest, directory))
    write_durably(directory / MANIFEST_FILE, imported.manifest.encoded())
    return imported


@contextmanager
def _from_elsewhere(*, hints_stay: bool) -> Iterator[None]:
    """Give errors inside a hint for content that was damaged elsewhere: make the file again there.

    `hints_stay`: errors inside keep their own hints.
    """
    try:
        yield
    except DamagedError as error:
        if error.hint is not None and hints_stay:
            raise
        raise DamagedError(error.message, hint=_EXPORT_AGAIN) from error


def _mode(part: str) -> int:
    """Return a part's mode: a VMM may need to open the mem-file for writing, unless root runs it."""
    return 0o600 if part.startswith("mem") and os.geteuid() != 0 else 0o444


@contextmanager
def _opened(file: Path | None) -> Iterator[tuple[int, str]]:
    if file is None:
        yield _STDIN, "standard input"
        return
    with filesystem_errors("read", file):
        # A FIFO without a writer is opened at once, and waited for where waiting can be cancelled.
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        yield descriptor, str(file)
    finally:
        os.close(descriptor)


def _publish(context: Context, row: SnapshotRecord, manifest: Manifest, name: str | None) -> SnapshotRecord:
    source = manifest.source
    assert source is not None
    taken = [row.name for row in context.store.snapshots.all() if row.source == source.id and row.name]
    chosen = name if name is not None else invent_name(taken)
    try:
        return context.store.snapshots.change(
            row.id,
            lambda row: msgspec.structs.replace(
                row,
                name=chosen,
                source=source.id,
                source_name=source.name,
                labels=manifest.labels,
                maker=None,
            ),
            durable=True,
        )
    except NameTakenError:
        raise NameTakenError(
            f"there is a snapshot named {chosen} of {source.name} already",
            hint="give it another name with --name",
        ) from None
