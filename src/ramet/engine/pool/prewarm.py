"""A warm VMM, made ahead: every step of a fork up to the resume of its guest."""

from __future__ import annotations

from pathlib import Path

import anyio
import msgspec

from ramet.drivers.interface import Driver, StartsEmpty
from ramet.engine.context import Context
from ramet.engine.maintenance.decompression import raw_file_kept
from ramet.engine.manifest import is_compressed, require_restorable
from ramet.engine.origin import Origin, origin_of
from ramet.engine.pool import directory as pool_directory
from ramet.engine.restore.connections import connections
from ramet.engine.restore.load import load, take_in_thread
from ramet.engine.restore.parts import ForkOptions
from ramet.engine.snapshots import catalog
from ramet.errors import NotFoundError, RametError, UnavailableError
from ramet.model.lifecycle import State
from ramet.model.names import new_id
from ramet.model.record import ProcessRef
from ramet.paths import MEM_FILE, WARM_FILE, Home
from ramet.system import processes, threads
from ramet.system.clock import now
from ramet.system.files import remove_tree
from ramet.system.share import can_link


class Made(msgspec.Struct, frozen=True):
    """A warm VMM that waits."""

    id: str
    key: str
    source: str | None
    process: ProcessRef


def origin_at(context: Context, source: str) -> Origin:
    """Return the capture at `source` in the home.

    Raises `NotFoundError` when there is none, `DamagedError`.
    """
    kind, _, source_id = source.partition("/")
    if kind == "snapshots":
        row = catalog.require_published(context, source_id)
        if row.name is not None:
            return catalog.origin_of_snapshot(context, row)
    elif kind == "instances":
        record = context.store.get(source_id)
        if record.state in {State.TEMPLATE, State.STANDBY}:
            return origin_of(context, record)
    raise NotFoundError(f"{source} is no capture that can be forked")


async def make_loaded(context: Context, source: str) -> Made:
    """Make a VMM with the guest that was captured at `source`, paused.

    Raises as the forks of that capture would; nothing of it is left then.
    """
    origin = origin_at(context, source)
    driver = context.driver(origin.manifest.driver)
    await require_restorable(origin.manifest, driver, name=origin.name)
    version = await driver.version()
    async with raw_file_kept(origin):
        return await _make_loaded(context, source, origin, driver, version)


async def _make_loaded(context: Context, source: str, origin: Origin, driver: Driver, version: str) -> Made:
    if is_compressed(origin.manifest, origin.directory):
        raise UnavailableError(
            f"the memory of {origin.title} is compressed, and isn't decompressed ahead",
            hint=f"fork it once, or run `ramet snapshot decompress {origin.ref}`",
        )
    if not can_link(origin.directory / origin.manifest.memory.base, context.home.pool, 1):
        raise UnavailableError(
            f"the memory of {origin.title} can't be linked, and isn't copied ahead",
            hint="put all of RAMET_HOME on one filesystem; a file can have 65,000 links",
        )
    warm_id = new_id()
    directory = context.home.pool / pool_directory.making(context.home, warm_id)
    running: ProcessRef | None = None
    try:
        parts = await take_in_thread(origin, driver, directory, ForkOptions())
        # The inode of this link: the capture may get another mem-file meanwhile.
        memory = pool_directory.mem_inode(directory, MEM_FILE)
        tag = context.home.instance(warm_id)
        async with connections() as opened:
            loaded = await load(driver, directory, parts, opened, resume=False, tag=tag)
        running = loaded.running.process
        warm = pool_directory.Warm(
            driver=driver.name,
            state="loaded",
            process=running,
            created_at=now(),
            source=source,
            source_name=origin.name,
            machine=loaded.machine,
            running=loaded.running,
            memory=parts.memory,
            disks=parts.disks,
            bases=parts.bases,
        )
        key = pool_directory.key_of(origin.directory, parts.manifest, version, memory)
        _publish(context.home, directory, warm_id, key, warm)
    except BaseException:
        await _give_up(directory, running)
        raise
    return Made(warm_id, key, source, running)


async def make_empty(context: Context, driver: Driver) -> Made:
    """Make a VMM without a guest. Errors as `StartsEmpty.start_empty`; nothing of it is left then."""
    assert isinstance(driver, StartsEmpty)
    version = await driver.version()
    warm_id = new_id()
    directory = context.home.pool / pool_directory.making(context.home, warm_id)
    running: ProcessRef | None = None
    try:
        directory.mkdir(mode=0o700)
        running = await driver.start_empty(directory, tag=context.home.instance(warm_id))
        warm = pool_directory.Warm(driver=driver.name, state="empty", process=running, created_at=now())
        key = pool_directory.key_of_empty(driver.name, version)
        _publish(context.home, directory, warm_id, key, warm)
    except BaseException:
        await _give_up(directory, running)
        raise
    return Made(warm_id, key, None, running)


def _publish(home: Home, directory: Path, warm_id: str, key: str, warm: pool_directory.Warm) -> None:
    (directory / WARM_FILE).write_bytes(msgspec.json.encode(warm))
    directory.rename(home.pool / pool_directory.ready(warm_id, key))


async def _give_up(directory: Path, running: ProcessRef | None) -> None:
    with anyio.CancelScope(shield=True):
        try:
            if running is not None:
                await processes.kill(running)
            await threads.run(remove_tree, directory)
        except (RametError, OSError):
            pass  # the first error matters; the rest is deleted when this process is gone
