"""The boot snapshots of a home: a directory each, named by its key, with a lock beside it.

A cache, bounded in bytes; what was used longest ago goes first. A snapshot that goes does so under another
name, so it is there whole or not at all; who restores from it holds the lock on its directory.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from ramet import config
from ramet.engine.capture.plan import fixed_files
from ramet.engine.context import Context
from ramet.engine.maintenance.decompression import raw_file_kept
from ramet.engine.manifest import Manifest, read_manifest
from ramet.engine.origin import Origin
from ramet.errors import DamagedError, FilesystemError, LockBusyError, NotFoundError
from ramet.model.boot import BootSnapshot
from ramet.paths import CONFIRMED_FILE, MANIFEST_FILE, Home
from ramet.system import threads
from ramet.system.clock import time_text
from ramet.system.files import TEMPORARY_PREFIX, allocated_bytes, filesystem_errors, free_bytes, remove_tree
from ramet.system.locks import file_lock, inode_lock
from ramet.system.publishing import fsync_directory
from ramet.units import parse_size

MAKING_LIMIT_S: Final = 300.0
"""For another process to boot a guest, on a busy machine, and to write its memory."""
_KEYS: Final = re.compile(r"[0-9a-f]{32}")
_LOCK_SUFFIX: Final = ".lock"
_SHARE_OF_FREE: Final = 10
"""The boot snapshots of a home may take a tenth of the disk that is free without them."""


class Entry(NamedTuple):
    """A boot snapshot."""

    key: str
    manifest: Manifest
    size_bytes: int
    """The bytes on the disk that it has for itself: not the kernel's, nor the container image's."""
    used_at: float
    """Seconds since the epoch."""


def find(context: Context, key: str) -> Origin:
    """Return a boot snapshot as the origin of guests. Raises `NotFoundError`, `DamagedError`."""
    directory = context.home.boot_snapshot(key)
    require_there = partial(_require_there, directory)
    require_there()
    try:
        manifest = read_manifest(directory)
    except DamagedError:
        require_there()
        raise
    source = manifest.source
    return Origin(
        directory=directory,
        manifest=manifest,
        name=manifest.image,
        parent=source.id if source is not None else key,
        snapshot=None,
        title=f"the boot snapshot of {manifest.image}",
        require_there=require_there,
    )


def _require_there(directory: Path) -> None:
    if not directory.is_dir():
        raise NotFoundError(f"there is no boot snapshot {directory.name}")


@asynccontextmanager
async def being_made(home: Home, key: str, *, waiting: Callable[[], object]) -> AsyncIterator[None]:
    """Be the only one who makes that boot snapshot inside. `waiting` is called if another one does.

    Raises `LockBusyError` when the other one doesn't end, `FilesystemError`.
    """
    busy = LockBusyError(
        "another process has been booting the same guest for a long time",
        hint="try again later, or boot one for yourself: `ramet run --cold`",
    )
    path = _lock(home, key)
    with filesystem_errors("make", path):
        home.boot_snapshots.mkdir(mode=0o700, exist_ok=True)
    async with AsyncExitStack() as leaving:
        try:
            await leaving.enter_async_context(file_lock(path, wait_s=0))
        except LockBusyError:  # it is waited for
            waiting()
            await leaving.enter_async_context(file_lock(path, wait_s=MAKING_LIMIT_S, busy=busy))
        yield


def publish(home: Home, directory: Path, manifest: Manifest, key: str) -> None:
    """Make the capture in an instance's directory the boot snapshot `key`. Blocks.

    Raises `FilesystemError`: then there is no such snapshot.
    """
    target = home.boot_snapshot(key)
    with filesystem_errors("keep the boot snapshot in", target):
        kept = {*manifest.files, MANIFEST_FILE, CONFIRMED_FILE}
        for path in directory.iterdir():
            if path.name not in kept:  # of its VMM
                path.unlink()
        if target.exists():  # a damaged one
            _put_away(target)
        directory.rename(target)
    fsync_directory(home.boot_snapshots)
    fsync_directory(directory.parent)


@asynccontextmanager
async def in_use(context: Context, key: str) -> AsyncIterator[Origin]:
    """Keep a boot snapshot from being removed inside. Yields it as `find`, whose errors are raised."""
    origin = find(context, key)
    async with raw_file_kept(origin):
        note_use(context.home, key)
        yield origin


def note_use(home: Home, key: str) -> None:
    """Note that a boot snapshot has just been used."""
    with suppress(OSError):  # then it counts as used when it was made
        os.utime(_lock(home, key))


def entries(home: Home) -> list[Entry]:
    """List the boot snapshots that can be read, the one that was used last first."""
    found = []
    for directory in _directories(home):
        with suppress(OSError, DamagedError):  # removed meanwhile; or damaged: made anew when wanted
            manifest = read_manifest(directory)
            lock = _lock(home, directory.name)
            used_at = (lock if lock.exists() else directory).stat().st_mtime
            found.append(Entry(directory.name, manifest, _own_bytes(directory, manifest), used_at))
    return sorted(found, key=lambda entry: entry.used_at, reverse=True)


def of_image(context: Context, image: str, digest: str | None) -> list[BootSnapshot]:
    """Describe the boot snapshots of an image: of a container image by its digest, else by its name."""
    return [
        BootSnapshot(
            key=entry.key,
            driver=entry.manifest.driver,
            driver_version=entry.manifest.driver_version,
            accelerator=entry.manifest.machine.accelerator,
            kernel_version=entry.manifest.kernel_version,
            memory_bytes=entry.manifest.machine.memory_bytes,
            cpus=entry.manifest.machine.cpus,
            size_bytes=entry.size_bytes,
            created_at=entry.manifest.created_at,
            used_at=time_text(entry.used_at),
        )
        for entry in entries(context.home)
        if _is_of(entry, image, digest)
    ]


async def remove_of_images(context: Context, is_gone: Callable[[str], bool]) -> tuple[int, int]:
    """Remove the boot snapshots of container images whose digest `is_gone`, but for those in use.

    Returns how many went, and the bytes that they had for themselves.
    """
    count = freed = 0
    for entry in await threads.run(entries, context.home):
        digest = entry.manifest.image_digest
        if digest is not None and is_gone(digest):
            with suppress(LockBusyError):  # in use: the next prune removes it
                await remove(context, entry.key)
                count, freed = count + 1, freed + entry.size_bytes
    return count, freed


def _is_of(entry: Entry, image: str, digest: str | None) -> bool:
    manifest = entry.manifest
    return manifest.image_digest == digest and (digest is not None or manifest.image == image)


def chosen_limit_bytes() -> int | None:
    """Return what the user allows boot snapshots to take; None for the default. Raises `UsageError`."""
    chosen = config.boot_snapshots()
    return None if chosen is None else parse_size(chosen)


def limit_bytes(home: Home) -> int:
    """Return how many bytes the boot snapshots of a home may take; 0 stands for none.

    That is `RAMET_BOOT_SNAPSHOTS`, else a tenth of what the disk has free without them.
    """
    if (chosen := chosen_limit_bytes()) is not None:
        return chosen
    try:
        free = free_bytes(home.root)
    except OSError:
        return 0
    return ((free or 0) + sum(entry.size_bytes for entry in entries(home))) // _SHARE_OF_FREE


async def keep_within_limit(context: Context, *, keep: str) -> None:
    """Remove what was used longest ago until the rest is within the limit. `keep` stays, and what is used."""
    home = context.home
    found = await threads.run(entries, home)
    limit, taken = await threads.run(limit_bytes, home), 0
    for entry in found:
        taken += entry.size_bytes
        if taken > limit and entry.key != keep:
            with suppress(FilesystemError, LockBusyError):  # next time
                await remove(context, entry.key)
                taken -= entry.size_bytes


async def remove(context: Context, key: str) -> None:
    """Remove a boot snapshot, if it exists. Instances that were made from it keep their files (I1).

    Raises `LockBusyError` while a guest is restored from it, or it is made; `FilesystemError`.
    """
    home = context.home
    directory = home.boot_snapshot(key)
    busy = LockBusyError(f"the boot snapshot {key} is in use", hint="try again")
    with filesystem_errors("remove", directory), suppress(FileNotFoundError):
        async with file_lock(_lock(home, key), wait_s=0, busy=busy):
            # Who restores from it shares this lock (`decompression.raw_file_kept`).
            async with inode_lock(directory, shared=False, wait_s=0, busy=busy):
                gone = _put_away(directory)
            _lock(home, key).unlink(missing_ok=True)
        await threads.run(remove_tree, gone)


async def gc(home: Home) -> None:
    """Remove what killed processes left of boot snapshots that were going."""
    if home.boot_snapshots.is_dir():
        for left in home.boot_snapshots.glob(f"{TEMPORARY_PREFIX}*"):
            await threads.run(remove_tree, left)


def _put_away(directory: Path) -> Path:
    gone = directory.with_name(f"{TEMPORARY_PREFIX}{directory.name}-{secrets.token_hex(4)}")
    directory.rename(gone)
    return gone


def _lock(home: Home, key: str) -> Path:
    return home.boot_snapshots / f"{key}{_LOCK_SUFFIX}"


def _directories(home: Home) -> list[Path]:
    try:
        return [path for path in home.boot_snapshots.iterdir() if _KEYS.fullmatch(path.name)]
    except FileNotFoundError:
        return []


def _own_bytes(directory: Path, manifest: Manifest) -> int:
    others = set(fixed_files(manifest.machine))
    return sum(allocated_bytes(directory / name) for name in manifest.files if name not in others)
