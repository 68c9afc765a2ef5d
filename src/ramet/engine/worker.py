"""The home's worker: work that outlives the command that found it.

One process a home, started when there is something to do, ending when there is nothing more. What it does is
in `compaction`; that it does it in a process of its own is so that nobody waits for it.
"""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import anyio
import msgspec

from ramet.drivers.api import Driver, ShortensDisks
from ramet.engine.compaction import compact_capture, long_chains, settled_disk, wants_compaction
from ramet.engine.compressing import mark
from ramet.engine.drivers import installed_drivers
from ramet.engine.manifest import read_manifest
from ramet.errors import LockBusyError, RametError
from ramet.host import launching, processes, rlimits
from ramet.host.forked import in_children
from ramet.host.locks import file_lock
from ramet.host.own_programs import with_ramet
from ramet.model.lifecycle import State
from ramet.model.record import Machine, Record
from ramet.paths import LIFECYCLE_LOCK, Home
from ramet.programs import environment
from ramet.store.records import Store

_ANOTHER_S = 60.0
"""How long a worker waits for the one before it, which may have looked already where the new work is."""
_CHANGING_S = 60.0
_started: list[subprocess.Popen[bytes]] = []
"""Workers that this process has started: those that have ended are waited for when the next one is."""


def wake_for_capture(home: Home, directory: Path) -> None:
    """Start the home's worker when there is something to do in that capture."""
    try:
        if wants_compaction(read_manifest(directory)):
            _wake_for_work(home)
    except (RametError, OSError):
        pass  # the capture is good without


def wake_for_machine(home: Home, machine: Machine) -> None:
    """Start the home's worker when a living instance's disks lie over too many files."""
    if long_chains(machine):
        try:
            _wake_for_work(home)
        except (RametError, OSError):
            pass  # they are good as they are


def _wake_for_work(home: Home) -> None:
    try:
        os.close(os.open(home.work_to_do, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return  # a worker is on its way that hasn't begun: it will look here too
    wake(home)


async def wake_if_left(home: Home) -> None:
    """Start the home's worker when there is work that nobody is at, because the last one was killed."""
    if not home.work_under_way.exists() and not _is_forgotten(home.work_to_do):
        return
    try:
        async with file_lock(home.worker_lock, wait_s=0):
            pass
    except LockBusyError:
        return
    try:
        wake(home)
    except (RametError, OSError):
        pass  # what there is to do stays marked, and whoever comes next tries again


def _is_forgotten(asked: Path) -> bool:
    try:
        return time.time() - asked.stat().st_mtime > _ANOTHER_S
    except FileNotFoundError:
        return False


def wake(home: Home) -> None:
    """Start a worker for a home. It goes on when this process ends, and keeps out of others' way."""
    _started[:] = [child for child in _started if child.poll() is None]
    _started.append(
        subprocess.Popen(
            [*with_ramet("ramet.engine.worker"), str(home.root)],
            cwd="/",
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    )
    rlimits.lift(_started[-1].pid)


def _forget() -> None:
    for child in _started:
        child.returncode = child.poll() or 0  # it may outlive us; Popen must not complain


async def work(home: Home) -> int:
    """Do what there is to do in a home, and return how many captures and instances were changed."""
    done = 0
    busy = LockBusyError("another worker is at work in this home")
    async with file_lock(home.worker_lock, wait_s=_ANOTHER_S, busy=busy):
        with suppress(FileNotFoundError):
            home.work_to_do.replace(home.work_under_way)
        store = Store(home.database)
        drivers = {driver.name: driver for driver in installed_drivers()}
        try:
            for directory in list(_captures(home, store)):
                try:
                    driver = drivers[read_manifest(directory).driver]
                    async with mark(home, directory, "compact", name=directory.name, wait_s=0):
                        done += await compact_capture(directory, driver)
                except (RametError, OSError, KeyError):
                    continue  # removed meanwhile, no room, being compressed: it is good as it is
            for record in store.all():
                try:
                    done += await _shorten(home, store, drivers, record)
                except (RametError, OSError, KeyError):
                    continue  # a chain that stays as long as it was is read all the same
        finally:
            store.close()
        # Not before: when this process is killed, the next ramet process finds that there is work.
        home.work_under_way.unlink(missing_ok=True)
    return done


def _captures(home: Home, store: Store) -> Iterator[Path]:
    """Where captures lie that others are made from. One in standby is restored, and then it is gone."""
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
        if processes.liveness(record.vmm.process) is not processes.Liveness.ALIVE:
            break  # dead, or not to be seen from here
        vmm = drivers[record.driver].attach(directory, record.vmm.process, record.machine)
        if not isinstance(vmm, ShortensDisks):
            break
        await vmm.shorten(disk)
        busy = LockBusyError(f"{record.name} is being changed")
        async with file_lock(directory / LIFECYCLE_LOCK, wait_s=_CHANGING_S, busy=busy):
            # A capture may have put another file on top since: what is below it is read from there.
            now = store.get(record.id)
            disks = tuple(settled_disk(directory, one) for one in now.machine.disks)
            machine = msgspec.structs.replace(now.machine, disks=disks)
            store.change(record.id, partial(_with_machine, machine=machine))
        done += 1
    return done


def _with_machine(record: Record, *, machine: Machine) -> Record:
    return msgspec.structs.replace(record, machine=machine)


def main(home: str) -> None:
    """`python -m ramet.engine.worker HOME`."""
    launching.reset()
    os.nice(10)
    try:
        anyio.run(work, Home(Path(home)))
    except RametError as error:
        sys.exit(error.exit_code)


def _are_not_ours() -> None:
    """In a forked child: they are its parent's to wait for."""
    _forget()
    _started.clear()


atexit.register(_forget)
in_children(_are_not_ours)


if __name__ == "__main__":
    main(sys.argv[1])
