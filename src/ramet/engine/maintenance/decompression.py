"""The mem-file of a compressed capture, made anew for the first user, and then shared by all.

The unpacked file is new, with the size, mode and modification time of the file that was compressed, so the
manifest doesn't change. It is published when its content has the digest of the part.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path

from ramet.engine.context import Context
from ramet.engine.maintenance.memory_jobs import TEMPORARY, MemoryJob, cancel, memory_job
from ramet.engine.maintenance.rounds import in_rounds
from ramet.engine.manifest import Manifest, is_compressed, read_manifest, require_restorable
from ramet.engine.origin import Origin
from ramet.errors import DamagedError, FilesystemError, LockBusyError, WrongStateError
from ramet.memory.compressed import Frame, damaged, read_table, unpack, unpack_into
from ramet.memory.confirmed import confirm
from ramet.memory.integrity import MAKE_AGAIN, SparseDigest
from ramet.paths import MANIFEST_FILE, Home
from ramet.progress import report
from ramet.system import threads
from ramet.system.files import filesystem_errors, free_bytes, new_file, open_regular
from ramet.system.locks import inode_lock
from ramet.system.publishing import publish
from ramet.units import format_bytes

Progress = Callable[[int, int], object]
"""Told how many bytes of the guest's memory have been worked on, and how many there are."""

_OTHERS_S = 3600.0
"""Another process unpacks it meanwhile: at 200 MB/s some 700 GB."""
_LOOK_AGAIN_S = 0.2
"""The mem-file may be there long before the job has ended."""
_PUBLISHING_S = 60.0
_STOPPING_S = 10.0
"""For a process that unpacks to notice that it should stop."""


@asynccontextmanager
async def raw_file_kept(origin: Origin) -> AsyncIterator[None]:
    """Keep the mem-file of a capture, if it exists, from being removed inside.

    Raises `NotFoundError` when the capture has been removed, `LockBusyError`.
    """
    busy = LockBusyError(f"the memory of {origin.title} is being put away", hint="try again later")
    async with _locked(origin, origin.directory, shared=True, wait_s=_PUBLISHING_S, busy=busy):
        yield


@asynccontextmanager
async def unused(origin: Origin, *, wait_s: float, busy: LockBusyError) -> AsyncIterator[None]:
    """Exclude every `raw_file_kept` of the capture inside.

    Raises `busy` when one still holds after `wait_s`, and `NotFoundError` when the capture has been removed.
    """
    async with _locked(origin, origin.directory, shared=False, wait_s=wait_s, busy=busy):
        yield


@asynccontextmanager
async def giving_up(home: Home, directory: Path, *, name: str) -> AsyncIterator[None]:
    """Keep others from making a mem-file in a capture's directory inside, so that it can be removed.

    A process that makes one is asked to stop, and raises `WrongStateError`. Raises `LockBusyError` when it
    hasn't stopped after 10 s.
    """
    busy = LockBusyError(
        f"the memory of {name} is being decompressed", hint=f"try again; {name} is unchanged"
    )
    path = directory / MANIFEST_FILE
    began = time.perf_counter()
    async with AsyncExitStack() as leaving:
        while True:
            cancel(home, directory, also_unpacking=True)
            try:
                with filesystem_errors("lock", path), suppress(FileNotFoundError):
                    # Without a manifest nothing is unpacked.
                    await leaving.enter_async_context(
                        inode_lock(path, shared=False, wait_s=_LOOK_AGAIN_S, busy=busy)
                    )
                break
            except LockBusyError:
                if time.perf_counter() - began > _STOPPING_S:
                    raise
        yield


@asynccontextmanager
async def _not_given_up(origin: Origin) -> AsyncIterator[None]:
    """Exclude `giving_up`: the capture is still the same, and stays inside."""
    busy = LockBusyError(f"{origin.title} is being stopped", hint="try again later")
    path = origin.directory / MANIFEST_FILE
    async with _locked(origin, path, shared=True, wait_s=_PUBLISHING_S, busy=busy):
        if read_manifest(origin.directory) != origin.manifest:
            raise WrongStateError(f"{origin.title} was captured anew meanwhile", hint="try again")
        origin.require_there()
        yield


@asynccontextmanager
async def _locked(
    origin: Origin, path: Path, *, shared: bool, wait_s: float, busy: LockBusyError
) -> AsyncIterator[None]:
    async with AsyncExitStack() as leaving:
        try:
            await leaving.enter_async_context(inode_lock(path, shared=shared, wait_s=wait_s, busy=busy))
        except OSError as error:
            origin.require_there()
            raise DamagedError(f"{path}: {error.strerror}", hint=MAKE_AGAIN) from error
        yield


async def unpacked(context: Context, origin: Origin) -> tuple[Origin, float]:
    """Return the capture with its mem-file in place, and the milliseconds that took: 0 if it existed.

    Of many callers at once, one unpacks it; the others wait. The caller has its `raw_file_kept`. Raises
    `DamagedError`, `FilesystemError` when there is no room, `UnavailableError` when it can't be restored
    here, `WrongStateError` when it was stopped meanwhile; nothing of it is left then.
    """
    if (origin.directory / origin.manifest.memory.base).exists():
        return origin, 0.0
    began = time.perf_counter()
    while True:
        try:
            # It may have been compressed, or decompressed, since it was read.
            origin = origin._replace(manifest=read_manifest(origin.directory))
            if not is_compressed(origin.manifest, origin.directory):
                break  # a missing file is damage, which `require_parts` reports
            # Gigabytes aren't unpacked for a capture that is refused in the end.
            driver = context.driver(origin.manifest.driver)
            await require_restorable(origin.manifest, driver, name=origin.name)
            async with memory_job(
                context.home, origin.directory, "unpack", name=origin.title, wait_s=_LOOK_AGAIN_S
            ) as job:
                origin = origin._replace(manifest=read_manifest(origin.directory))
                if is_compressed(origin.manifest, origin.directory):
                    await unpack_memory(origin, job)
        except LockBusyError:
            report("waiting for another call that decompresses it")
            if time.perf_counter() - began > _OTHERS_S:
                raise
        except (DamagedError, FilesystemError):
            origin.require_there()
            raise
    return origin, round((time.perf_counter() - began) * 1000, 3)


async def unpack_memory(origin: Origin, job: MemoryJob, progress: Progress | None = None) -> None:
    """Make the mem-file of a compressed capture, in place of an existing one: its links stay unchanged.

    The caller has the job on the capture, which nobody gives up meanwhile (`giving_up`). A half-made file is
    removed with the job. Errors as `unpacked`.
    """
    directory, manifest = origin.directory, origin.manifest
    async with _not_given_up(origin):
        memory = manifest.memory
        assert memory.compressed is not None
        part, mem, packed = manifest.parts[memory.base], directory / memory.base, memory.compressed
        _require_room(directory, part.facts.allocated_bytes)
        made = directory / f"{TEMPORARY}{secrets.token_hex(4)}"

        def told(done: int, total: int) -> None:
            job.require()
            if progress is not None:
                progress(done, total)

        with filesystem_errors("unpack", directory / packed.file), new_file(made) as out:
            os.ftruncate(out, part.facts.size_bytes)
            await _through(
                directory / packed.file,
                manifest,
                lambda source, path, frame: unpack_into(source, path, frame, out),
                told,
            )
            os.fchmod(out, part.facts.mode)
            os.utime(out, ns=(part.facts.mtime_ns, part.facts.mtime_ns))
        await threads.run(publish, made, mem)
        if part.digest is not None:
            confirm(mem, memory.base, part.facts, part.digest, directory)


async def check_compressed(directory: Path, manifest: Manifest, progress: Progress | None = None) -> None:
    """Raise `DamagedError` unless the compressed memory of a capture unpacks to the part, by its digest."""
    assert manifest.memory.compressed is not None
    path = directory / manifest.memory.compressed.file
    with filesystem_errors("read", path):
        await _through(path, manifest, unpack, progress)


async def _through(
    path: Path,
    manifest: Manifest,
    take_out: Callable[[int, Path, Frame], bytes | None],
    progress: Progress | None,
) -> None:
    part = manifest.parts[manifest.memory.base]
    total = SparseDigest(part.facts.size_bytes)
    done = 0

    def digest(results: list[tuple[Frame, bytes | None]]) -> None:
        nonlocal done
        for frame, data in results:
            if data is not None:
                total.stretch(frame.start, data)
            done = frame.start + frame.length
        report("decompressing", done, part.facts.size_bytes)
        if progress is not None:
            progress(done, part.facts.size_bytes)

    try:
        with open_regular(path) as source:
            frames = read_table(source, path, part.facts.size_bytes)
            work = partial(take_out, source, path)
            await in_rounds(frames, lambda frame: (frame, work(frame)), digest)
    except FileNotFoundError:
        raise DamagedError(f"{path} is missing", hint=MAKE_AGAIN) from None
    if part.digest is not None and total.text != part.digest:
        raise damaged(path, "its content isn't what was compressed")


def _require_room(directory: Path, needed_bytes: int) -> None:
    with filesystem_errors("look at", directory):
        free = free_bytes(directory)
    if free is not None and free < needed_bytes:
        raise FilesystemError(
            f"can't unpack the memory in {directory}: {format_bytes(needed_bytes)} are needed, "
            f"{format_bytes(free)} are free",
            hint="free some space on that filesystem; the compressed file is unchanged",
        )
