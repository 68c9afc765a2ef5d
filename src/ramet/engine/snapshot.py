"""The handle of one snapshot."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ramet.calls import Calls, calls_into_host
from ramet.engine import fork as forking
from ramet.engine import snapshot_files, snapshots
from ramet.engine.arguments import public
from ramet.engine.bring_up import ForkOptions
from ramet.engine.compressing import compression_of
from ramet.engine.compression import compress, decompress, of_snapshot
from ramet.engine.context import Context
from ramet.engine.manifest import Manifest, files_there, read_manifest
from ramet.engine.vm import VM, adopt, fork_call
from ramet.errors import DamagedError, NotFoundError
from ramet.handles import Handle
from ramet.host.files import STAT_BLOCK_BYTES
from ramet.model.forks import ForkCall
from ramet.model.shapes import (
    Compression,
    Exported,
    ForkReport,
    SnapshotInfo,
    SnapshotInspection,
    SnapshotPart,
    Verification,
)
from ramet.model.snapshot import SnapshotRecord

if TYPE_CHECKING:
    from os import stat_result


_TRIES = 3


@calls_into_host()
class Snapshot(Handle):
    """One snapshot: immutable, and independent of its source and of its forks.

    Every method raises `NotFoundError` once it has been removed.
    """

    def __init__(self, context: Context, record: SnapshotRecord) -> None:
        self._context = context
        self.id = record.id
        self.name = record.name or record.id

    def __repr__(self) -> str:
        return f"<Snapshot {self.name} {self.id}>"

    @property
    def _calls(self) -> Calls:
        return self._context.calls

    @property
    def _record(self) -> SnapshotRecord:
        return snapshots.require_published(self._context, self.id)

    @property
    def directory(self) -> Path:
        """Where its parts and its manifest lie."""
        return self._context.home.snapshot(self.id)

    @public
    async def info(self) -> SnapshotInfo:
        """What `snapshot ls` shows of it. Raises `DamagedError` when its manifest can't be read."""
        return describe(self._context, self._record)

    @public
    async def inspect(self) -> SnapshotInspection:
        """All that is known of it: the machine that fits it, its parts and their digests. Errors as
        `info`.
        """
        return inspect(self._context, self._record)

    @public
    def fork(
        self,
        count: int = 1,
        *,
        name: str | None = None,
        require_shared: bool = False,
        share_memory: bool = True,
        return_exceptions: bool = False,
        detach: bool = False,
    ) -> ForkCall[VM]:
        """Fork it `count` times: `await` it for a list, or use it with `async with`, which removes
        the forks at the end.

        As `VM.fork`. Its source may be gone.
        """
        options = ForkOptions(require_shared=require_shared, share_memory=share_memory)
        return fork_call(
            self._context,
            lambda: forking.fork_snapshot(
                self._context, self._record, count, name=name, options=options, detach=detach
            ),
            return_exceptions=return_exceptions,
            detach=detach,
        )

    @public
    async def fork_report(
        self,
        count: int = 1,
        *,
        name: str | None = None,
        require_shared: bool = False,
        share_memory: bool = True,
        detach: bool = False,
    ) -> ForkReport:
        """As `fork`, but the contract's report: a receipt or a failure for each fork, in order.

        Nothing is raised for one that fails.
        """
        options = ForkOptions(require_shared=require_shared, share_memory=share_memory)
        outcome = await forking.fork_snapshot(
            self._context, self._record, count, name=name, options=options, detach=detach
        )
        adopt(self._context, outcome, detach=detach)
        return outcome.report

    @public
    async def verify(self) -> Verification:
        """Read every part and hold it against its digest. A bad one is in the result; nothing is raised for
        it.

        Raises `DamagedError` when the manifest can't be read.
        """
        record = self._record
        parts = await snapshots.verify(self._context, record)
        return Verification(id=self.id, name=self.name, ok=all(one.ok for one in parts), parts=parts)

    @public
    async def compress(
        self, *, level: int | None = None, progress: Callable[[int, int], object] | None = None
    ) -> Compression:
        """Compress the memory with zstd on all CPUs, then remove the raw file.

        `level` is 1 (fast) to 19 (small); the level that it has unless given, or else 3. The first fork
        afterwards decompresses the memory once, for all forks; both files stay until `compress` or
        `decompress` is called again. `progress(done_bytes, total_bytes)` is called from a worker thread, in
        bytes of the guest's memory.

            result = await snapshot.compress(level=3)
            print(result.raw_bytes, result.compressed_bytes)

        Raises `UsageError` for another level; `UnavailableError` when the capture has no digests;
        `WrongStateError` when an instance was rewound to it meanwhile; `LockBusyError` when another call
        works on the memory, or a fork still needs the raw file; `DamagedError`; `FilesystemError`.
        After an error it can be forked as before. It may have been compacted. If only the raw file couldn't
        be removed, it is compressed and has both files.
        """
        context = self._context
        return await compress(context, of_snapshot(context, self._record), level, progress)

    @public
    async def decompress(self, *, progress: Callable[[int, int], object] | None = None) -> Compression:
        """Make the memory raw again, and remove the compressed file. Nothing happens where it is raw.

        Errors as `compress`.
        """
        context = self._context
        return await decompress(context, of_snapshot(context, self._record), progress)

    @public
    async def export(self, file: str | os.PathLike[str]) -> Exported:
        """Write it to one file, sparse, from which `Host.import_snapshot` makes it again, here or elsewhere.

        `-` is standard output. Raises `DamagedError` when a part isn't as it was published,
        `FilesystemError`; no file is left then.
        """
        record = self._record
        written = await snapshot_files.export_snapshot(self._context, record, snapshot_files.named_file(file))
        return Exported(id=self.id, name=self.name, file=str(file), bytes_written=written)

    @public
    async def remove(self) -> None:
        """Remove it. Its forks don't notice, and neither do other snapshots."""
        if not await snapshots.remove(self._context, self._record):
            raise NotFoundError(
                f"snapshot {self.name} is gone", hint="`ramet snapshot ls` lists what there is"
            )


def describe(context: Context, record: SnapshotRecord) -> SnapshotInfo:
    """What `snapshot ls` shows of a snapshot."""
    return SnapshotInfo(**_fields(context, record, *_read(context, record)))


def _read(context: Context, record: SnapshotRecord) -> tuple[Manifest, dict[str, stat_result]]:
    directory = context.home.snapshot(record.id)
    try:
        for tries_left in reversed(range(_TRIES)):
            manifest = read_manifest(directory)
            try:
                return manifest, {
                    name: (directory / name).stat() for name in files_there(manifest, directory)
                }
            except FileNotFoundError:
                if tries_left == 0:
                    raise
                # Perhaps compacted or compressed at this moment.
        raise AssertionError
    except (DamagedError, OSError) as error:
        context.store.snapshots.get(record.id)  # removed meanwhile: nothing is damaged
        if isinstance(error, OSError):
            raise DamagedError(
                f"{error.filename}: {error.strerror}",
                hint=f"`ramet snapshot verify {record.id}` says which of its parts are whole",
            ) from error
        raise


def _fields(
    context: Context, record: SnapshotRecord, manifest: Manifest, facts: dict[str, stat_result]
) -> dict[str, Any]:
    forks = Counter(one.snapshot for one in context.store.all())
    occupied = {name: found.st_blocks * STAT_BLOCK_BYTES for name, found in facts.items()}
    return {
        "id": record.id,
        "name": record.name,
        "source": record.source,
        "source_name": record.source_name,
        "driver": manifest.driver,
        "image": manifest.image,
        "directory": str(context.home.snapshot(record.id)),
        "memory_bytes": manifest.machine.memory_bytes,
        "cpus": manifest.machine.cpus,
        "accelerator": manifest.machine.accelerator,
        "generation": manifest.generation,
        "created_at": record.created_at,
        "labels": record.labels,
        "allocated_bytes": sum(occupied.values()),
        "own_bytes": sum(occupied[name] for name, found in facts.items() if found.st_nlink == 1),
        "delta_bytes": manifest.memory.delta_bytes,
        "forks": forks[record.id],
    }


def _part(manifest: Manifest, name: str, found: stat_result) -> SnapshotPart:
    facts = manifest.facts_of(name)
    digest = manifest.parts[name if name in manifest.parts else manifest.memory.base].digest
    return SnapshotPart(
        name=name,
        size_bytes=facts.size_bytes,
        allocated_bytes=facts.allocated_bytes,
        links=found.st_nlink,
        digest=digest,
    )


def inspect(context: Context, record: SnapshotRecord) -> SnapshotInspection:
    """What `snapshot inspect` shows."""
    manifest, facts = _read(context, record)
    fields = _fields(context, record, manifest, facts)
    return msgspec.convert(
        {
            **fields,
            "compression": compression_of(context, context.home.snapshot(record.id), manifest),
            "driver_version": manifest.driver_version,
            "kernel_version": manifest.kernel_version,
            "machine_type": manifest.machine.machine_type,
            "cpu_model": manifest.machine.cpu_model,
            "arguments": manifest.arguments or [],
            "parent": manifest.source.parent if manifest.source else None,
            "source_state": manifest.source.state if manifest.source else None,
            "parts": [_part(manifest, name, found) for name, found in facts.items()],
        },
        SnapshotInspection,
        from_attributes=True,
    )
