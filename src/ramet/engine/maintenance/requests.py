"""Requests to the home's worker: who asks for it, and when it is started."""

from __future__ import annotations

import atexit
import os
import subprocess
import time
from pathlib import Path

from ramet.engine.maintenance.compaction import long_chains, wants_compaction
from ramet.engine.manifest import read_manifest
from ramet.errors import LockBusyError, RametError
from ramet.model.record import Machine
from ramet.paths import Home
from ramet.programs import environment
from ramet.system import rlimits
from ramet.system.forked import in_children
from ramet.system.locks import file_lock
from ramet.system.own_programs import with_ramet

ANOTHER_WORKER_S = 60.0
"""Longest wait of a worker for the one before it, which may not see the new work any more."""
_started: list[subprocess.Popen[bytes]] = []
"""Workers that this process has started: ended ones are collected at the next start."""


def request_for_capture(home: Home, directory: Path) -> None:
    """Start the home's worker when there is something to do in that capture."""
    try:
        if wants_compaction(read_manifest(directory)):
            _request_for_work(home)
    except (RametError, OSError):
        pass  # the capture is good without


def request_for_machine(home: Home, machine: Machine) -> None:
    """Start the home's worker when a living instance's disks lie over too many files."""
    if long_chains(machine):
        try:
            _request_for_work(home)
        except (RametError, OSError):
            pass  # they can be used unchanged


def _request_for_work(home: Home) -> None:
    try:
        os.close(os.open(home.work_to_do, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return  # a worker is on its way that hasn't begun: it will look here too
    request_worker(home)


async def request_if_left(home: Home) -> None:
    """Start the home's worker when there is work without a worker, because the last one was killed."""
    if not home.work_under_way.exists() and not _is_forgotten(home.work_to_do):
        return
    try:
        async with file_lock(home.worker_lock, wait_s=0):
            pass
    except LockBusyError:
        return
    try:
        request_worker(home)
    except (RametError, OSError):
        pass  # the work stays recorded, and the next process tries again


def _is_forgotten(asked: Path) -> bool:
    try:
        return time.time() - asked.stat().st_mtime > ANOTHER_WORKER_S
    except FileNotFoundError:
        return False


def request_worker(home: Home) -> None:
    """Start a worker for a home. It outlives this process, and keeps out of others' way."""
    _started[:] = [child for child in _started if child.poll() is None]
    _started.append(
        subprocess.Popen(
            [*with_ramet("ramet.engine.maintenance.worker"), str(home.root)],
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


def _are_not_ours() -> None:
    """Forget the workers in a forked child: they are its parent's to wait for."""
    _forget()
    _started.clear()


atexit.register(_forget)


in_children(_are_not_ours)
