"""Compression of a capture's memory, and its reverse.

The capture is a snapshot's, or an instance's directory. Compressing is compaction, packing into a new file,
manifest, and then the raw file is removed; each step is durable before the next. Permanent decompression is
the same backwards. Forks, which have their own links, don't notice.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    suppress,
)
from pathlib import Path
from typing import Final, NamedTuple

import anyio
import msgspec

from ramet.engine.context import Context
from ramet.engine.maintenance.compaction import compact_capture, wants_compaction
from ramet.engine.maintenance.decompression import Progress, check_compressed, unpack_memory, unused
from ramet.engine.maintenance.memory_jobs import COMPACTION_S, TEMPORARY, MemoryJob, memory_job
from ramet.engine.maintenance.requests import request_for_capture
from ramet.engine.maintenance.rounds import in_rounds
from ramet.engine.manifest import Compressed, Manifest, check_part, is_compressed
from ramet.engine.origin import Origin, origin_of
from ramet.errors import (
    DamagedError,
    FilesystemError,
    LockBusyError,
    RametError,
    UnavailableError,
    UsageError,
    WrongStateError,
)
from ramet.memory.compressed import HIGHEST_LEVEL, LOWEST_LEVEL, USUAL_LEVEL, length_at, pack, starts, table
from ramet.memory.integrity import MAKE_AGAIN, SparseDigest, digest, facts_of
from ramet.model.lifecycle import State, article
from ramet.model.record import Record
from ramet.model.schema import Compression
from ramet.paths import MANIFEST_FILE
from ramet.progress import report
from ramet.system import threads
from ramet.system.files import allocated_bytes, filesystem_errors, new_file, open_regular, write_all
from ramet.system.locks import file_lock
from ramet.system.publishing import fsync_directory, publish

_FORKS_S: Final = 10.0
"""Forks that are being made keep the raw file; most are made within that time."""
_A_MOMENT_S: Final = 0.1


class Target(NamedTuple):
    """A capture to compress."""

    id: str
    name: str
    origin: Callable[[], Origin]
    """Returns the present capture. Raises as `origin_of`."""
    unchanging: Callable[[], AbstractAsyncContextManager[object]]
    """Returns a context inside which nobody changes the capture's owner."""
    may_compact_disks: bool
    """False if the files of its disks have to be those in a record."""

    def still(self, begun: Manifest) -> Origin:
        """Return the capture if `begun` still describes it, else raise `WrongStateError`. Raises as `origin`.

        An instance may have been stopped, started and captured anew, in the same directory.
        """
        now = self.origin()
        if now.manifest != begun:
            raise WrongStateError(f"{self.name} was captured anew meanwhile", hint="run the command again")
        return now


def of_instance(context: Context, record: Record) -> Target:
    """Make the target of a template, or of an instance in standby.

    `Target.origin` raises `WrongStateError` for any other instance.
    """

    def origin() -> Origin:
        now = context.store.get(record.id)
        if now.state not in {State.TEMPLATE, State.STANDBY}:
            first = "" if now.state in {State.RUNNING, State.PAUSED} else f"`ramet start {now.name}` first; "
            raise WrongStateError(
                f"{now.name} is {article(now.state)}: there is no capture of it to compress",
                hint=f"{first}`ramet snapshot create {now.name}` makes one, and so does"
                f" `ramet standby {now.name}`",
            )
        return origin_of(context, now)

    return Target(record.id, record.name, origin, lambda: context.lifecycle(record), may_compact_disks=False)


async def compress(
    context: Context, target: Target, level: int | None, progress: Progress | None = None
) -> Compression:
    """Compress a capture's memory, then remove the raw file, or only remove it at an unchanged level.

    Without `level` the level is the present level, or zstd's own.

    Raises `UsageError` for a level that zstd doesn't have; `UnavailableError` when the capture has no
    digests; `WrongStateError` when there is no capture, or it was restored, rewound to, stopped or captured
    anew meanwhile; `LockBusyError` when another call works on the memory, or a fork needs the raw file;
    `DamagedError`; `FilesystemError`. After an error it can be forked as before. It may have been compacted.
    If only the raw file couldn't be removed, it is compressed and has both files.
    """
    if level is not None and not LOWEST_LEVEL <= level <= HIGHEST_LEVEL:
        raise UsageError(
            f"there is no level {level}",
            hint=f"levels are {LOWEST_LEVEL} (quick) to {HIGHEST_LEVEL} (small); 3 is zstd's own",
        )
    began = time.perf_counter()
    origin = target.origin()
    async with (
        _there(target),
        memory_job(context.home, origin.directory, "compress", name=target.name, wait_s=_A_MOMENT_S) as job,
    ):
        await _compact(context, target, origin)
        origin = target.origin()
        manifest, directory = origin.manifest, origin.directory
        packed = manifest.memory.compressed
        if level is None:
            level = packed.level if packed is not None else USUAL_LEVEL
        if not await _is_done(directory, manifest, level, progress):
            async with AsyncExitStack() as failing:
                if packed is not None and not await _is_whole(manifest, directory):
                    await unpack_memory(origin, job, progress)
                    failing.push_async_callback(_put_away_again, target, manifest)
                manifest = await _pack(target, origin, level, job, progress)
                failing.pop_all()
        if (directory / manifest.memory.base).exists():
            await _put_away(target, manifest, level)
    return _result(target, began)


async def decompress(context: Context, target: Target, progress: Progress | None = None) -> Compression:
    """Make a capture's memory raw again, and remove the compressed file. Raw memory stays as it is.

    Errors as `compress`. An existing raw file is read first: a damaged file is made anew.
    """
    began = time.perf_counter()
    origin = target.origin()
    async with (
        _there(target),
        memory_job(context.home, origin.directory, "unpack", name=target.name, wait_s=_A_MOMENT_S) as job,
    ):
        origin = target.origin()
        manifest, directory = origin.manifest, origin.directory
        if manifest.memory.compressed is not None:
            if not await _is_whole(manifest, directory):
                await unpack_memory(origin, job, progress)
            async with target.unchanging():
                target.still(manifest)
                await threads.run(_publish_manifest, directory, _raw(manifest, directory))
            # The compressed file, which isn't named any more, goes with the job.
    request_for_capture(context.home, origin.directory)
    return _result(target, began)


@asynccontextmanager
async def _there(target: Target) -> AsyncIterator[None]:
    """Raise what `target.origin` raises instead of damage, if the capture was removed meanwhile."""
    try:
        yield
    except (DamagedError, FilesystemError):
        target.origin()
        raise


async def _is_whole(manifest: Manifest, directory: Path) -> bool:
    """Tell whether the raw file can replace the compressed file: by its content, the only copy then."""
    base = manifest.memory.base
    expected = manifest.parts[base].digest

    def look() -> bool:
        check_part(manifest, directory, base)
        return expected is None or digest(directory / base) == expected

    try:
        return await threads.run(look, abandon_on_cancel=True)
    except DamagedError:
        return False  # or it isn't there


def _publish_manifest(directory: Path, manifest: Manifest) -> None:
    """Write a manifest as `write_durably`, by a temporary file that is removed with the job."""
    made = directory / f"{TEMPORARY}{secrets.token_hex(4)}"
    with filesystem_errors("write", directory / MANIFEST_FILE), new_file(made) as out:
        write_all(out, manifest.encoded(), 0)
    publish(made, directory / MANIFEST_FILE)


def _raw(manifest: Manifest, directory: Path) -> Manifest:
    """Return the manifest of a capture that was never compressed, with the present mem-file."""
    base = manifest.memory.base
    now = msgspec.structs.replace(manifest.parts[base], facts=facts_of(directory / base))
    return msgspec.structs.replace(manifest.with_compressed(None), parts={**manifest.parts, base: now})


async def _compact(context: Context, target: Target, origin: Origin) -> None:
    """Compact before a compression, because afterwards the delta stays beside the compressed file."""
    if not wants_compaction(origin.manifest) or origin.manifest.memory.compressed is not None:
        return
    driver = context.driver(origin.manifest.driver)
    report("waiting for the compaction of others")
    with suppress(RametError):  # the delta is as good as before; what else is wrong is met below, too
        async with file_lock(context.home.worker_lock, wait_s=COMPACTION_S), target.unchanging():
            await compact_capture(origin.directory, driver, disks=target.may_compact_disks)


async def _is_done(directory: Path, manifest: Manifest, level: int, progress: Progress | None) -> bool:
    """Tell whether there is a compressed file of that level.

    If the raw file would be removed in favour of it, the compressed file is read first.
    """
    compressed = manifest.memory.compressed
    if compressed is None or compressed.level != level:
        return False
    if is_compressed(manifest, directory):
        return True
    try:
        await check_compressed(directory, manifest, progress)
    except DamagedError:
        return False  # another one is made of the raw file
    return True


async def _pack(
    target: Target, origin: Origin, level: int, job: MemoryJob, progress: Progress | None
) -> Manifest:
    """Make the compressed file, and write a manifest that names it.

    Unnamed files are removed with the job.
    """
    manifest, directory = origin.manifest, origin.directory
    base = manifest.memory.base
    part = manifest.parts[base]
    if part.digest is None:
        raise UnavailableError(
            f"{target.name} was captured without digests, so nothing would prove a decompression",
            hint="make the capture again",
        )
    await threads.run(check_part, manifest, directory, base)
    made = directory / f"{TEMPORARY}{secrets.token_hex(4)}"
    final = directory / f"{base.partition('-')[0]}-{secrets.token_hex(4)}.zst"
    with filesystem_errors("compress", directory / base):
        digest = await _write(directory / base, made, part.facts.size_bytes, level, job, progress)
    if digest != part.digest:
        raise DamagedError(
            f"{directory / base} is damaged: its content isn't what was published", hint=MAKE_AGAIN
        )
    async with target.unchanging():
        job.require()
        target.still(manifest)
        await threads.run(publish, made, final)
        packed = Compressed(file=final.name, facts=facts_of(final), level=level)
        named = manifest.with_compressed(packed)
        await threads.run(_publish_manifest, directory, named)
    return named


async def _write(
    raw: Path, made: Path, size_bytes: int, level: int, job: MemoryJob, progress: Progress | None
) -> str:
    """Write the compressed file, and return the digest of its content."""
    total = SparseDigest(size_bytes)
    sizes: list[int] = []
    position = 0
    with open_regular(raw) as source, new_file(made) as out:

        def take(results: list[tuple[int, bytes, bytes | None]]) -> None:
            nonlocal position
            job.require()
            for start, packed, data in results:
                if data is not None:
                    total.stretch(start, data)
                write_all(out, packed, position)
                sizes.append(len(packed))
                position += len(packed)
                done = start + length_at(start, size_bytes)
                report("", done, size_bytes)
                if progress is not None:
                    progress(done, size_bytes)

        await in_rounds(
            starts(size_bytes),
            lambda start: (start, *pack(source, start, length_at(start, size_bytes), level)),
            take,
        )
        write_all(out, table(sizes, size_bytes), position)
        os.fchmod(out, 0o444)
    return total.text


async def _put_away(target: Target, manifest: Manifest, level: int, *, wait_s: float | None = None) -> None:
    """Remove the raw file. Raise `LockBusyError` while it is in use: both files stay then."""
    busy = LockBusyError(
        f"{target.name} is compressed, but its raw file stays: it is being forked, restored or verified",
        hint=f"`ramet snapshot compress --level {level} {target.id}` removes it when that is done",
    )
    async with target.unchanging():
        origin = target.still(manifest)
        report("waiting for forks that need the raw file")
        async with unused(origin, wait_s=_FORKS_S if wait_s is None else wait_s, busy=busy):
            base = origin.directory / manifest.memory.base
            with filesystem_errors("remove", base):
                base.unlink(missing_ok=True)
            await threads.run(fsync_directory, origin.directory)


async def _put_away_again(target: Target, manifest: Manifest) -> None:
    """Remove the raw file that was made for a compression that has failed, unless it is needed."""
    # Where it is needed, or changed, it stays: the next compression or decompression sees to it.
    with anyio.move_on_after(_A_MOMENT_S, shield=True), suppress(RametError):
        await _put_away(target, manifest, USUAL_LEVEL, wait_s=0)


def _result(target: Target, began: float) -> Compression:
    origin = target.origin()
    manifest, directory = origin.manifest, origin.directory
    packed = manifest.memory.compressed
    part = manifest.parts[manifest.memory.base]
    return Compression(
        id=target.id,
        name=target.name,
        compression="raw" if packed is None else "compressed",
        level=packed.level if packed is not None else None,
        memory_bytes=part.facts.size_bytes,
        raw_bytes=part.facts.allocated_bytes,
        compressed_bytes=allocated_bytes(directory / packed.file) if packed is not None else None,
        wall_ms=round((time.perf_counter() - began) * 1000, 3),
    )
