"""The home's worker: work that outlives the command that found it.

One process per home, started when there is something to do, ending when there is nothing more. Its work is in
`compaction`; it is a separate process so that nobody waits for it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import anyio
import msgspec

from ramet.drivers.interface import Driver, ShortensDisks
from ramet.engine.drivers import installed_drivers
from ramet.engine.maintenance.compaction import compact_capture, long_chains, shortened_disk
from ramet.engine.maintenance.memory_jobs import memory_job
from ramet.engine.maintenance.requests import ANOTHER_WORKER_S
from ramet.engine.manifest import read_manifest
from ramet.errors import LockBusyError, RametError
from ramet.model.lifecycle import State
from ramet.model.record import Machine, Record
from ramet.paths import LIFECYCLE_LOCK, Home
from ramet.store.records import Store
from ramet.system import launching, liveness
from ramet.system.locks import file_lock

_CHANGING_S = 60.0


async def work(home: Home) -> int:
    """Do the work that a home has, and return how many captures and instances were changed."""
    done = 0
    busy = LockBusyError("another worker is at work in this home")
    async with file_lock(home.worker_lock, wait_s=ANOTHER_WORKER_S, busy=busy):
        with suppress(FileNotFoundError):
            home.work_to_do.replace(home.work_under_way)
        store = Store(home.database)
        drivers = {driver.name: driver for driver in installed_drivers()}
        try:
            for directory in list(_captures(home, store)):
                try:
                    driver = drivers[read_manifest(directory).driver]
                    async with memory_job(home, directory, "compact", name=directory.name, wait_s=0):
                        done += await compact_capture(directory, driver)
                except (RametError, OSError, KeyError):
                    continue  # removed meanwhile, no room, being compressed: it can be used unchanged
            for record in store.all():
                try:
                    done += await _shorten(home, store, drivers, record)
                except (RametError, OSError, KeyError):
                    continue  # a long chain can be read too
        finally:
            store.close()
        # Not before: when this process is killed, the next ramet process finds that there is work.
        home.work_under_way.unlink(missing_ok=True)
    return done


def _captures(home: Home, store: Store) -> Iterator[Path]:
    """Yield the directories of captures that others are made from. A restored standby is no longer one."""
    for record in store.all():
        if record.state is State.TEMPLATE and record.pending is None:
            yield home.instance(record.id)
    for row in store.snapshots.all():
        if row.is_published:
            yield home.snapshot(row.id)


async def _shorten(home: Home, store: Store, drivers: Mapping[str, Driver], record: Record) -> int:
    done = 0
    directory = home.instance(record.id)
    for disk in long_chains(record.machine):
        if record.state is not State.RUNNING or record.vmm is None:
            break
        if liveness.liveness(record.vmm.process) is not liveness.Liveness.ALIVE:
            break  # dead, or not to be seen from here
        vmm = drivers[record.driver].attach(directory, record.vmm.process, record.machine)
        if not isinstance(vmm, ShortensDisks):
            break
        await vmm.shorten(disk)
        busy = LockBusyError(f"{record.name} is being changed")
        async with file_lock(directory / LIFECYCLE_LOCK, wait_s=_CHANGING_S, busy=busy):
            # A capture may have put another file on top since: the files below are read from there.
            now = store.get(record.id)
            disks = tuple(shortened_disk(directory, disk) for disk in now.machine.disks)
            machine = msgspec.structs.replace(now.machine, disks=disks)
            store.change(record.id, partial(_with_machine, machine=machine))
        done += 1
    return done


def _with_machine(record: Record, *, machine: Machine) -> Record:
    return msgspec.structs.replace(record, machine=machine)


def main(home: str) -> None:
    """Run as `python -m ramet.engine.maintenance.worker HOME`."""
    launching.reset()
    os.nice(10)
    try:
        anyio.run(work, Home(Path(home)))
    except RametError as error:
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main(sys.argv[1])
