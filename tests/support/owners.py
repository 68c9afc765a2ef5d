"""A process that owns guests, and what is left of it when it has been killed."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio

from ramet.model.record import ProcessRef, Record
from ramet.paths import Home
from ramet.store.records import Store
from ramet.system import liveness, spawn
from ramet.system.owner_watcher import DOING, TODO

PROMISED_S = 5.0
"""What docs/concepts/owners.md promises for the guests of a killed owner."""
CLEAN_LIMIT_S = 60.0
"""For what has no promise of its own: directories, after the guests."""
_FORKS = """
import sys, anyio, ramet

async def main():
    home, source, count, detached, name = *sys.argv[1:3], *map(int, sys.argv[3:5]), sys.argv[5]
    async with ramet.Host(home) as host:
        forks = await (await host.get(source)).fork(count, name=name)
        for vm in forks[:detached]:
            await vm.detach()
        print("made", flush=True)
        await anyio.sleep_forever()

anyio.run(main)
"""


@contextmanager
def owner(
    home: Path, source: str, count: int, *, detached: int = 0, name: str = "owned", **options: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """A program that has made so many forks of `source` and keeps its Host open."""
    words = [sys.executable, "-c", _FORKS, str(home), source, str(count), str(detached), name]
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, **options)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"made\n"
        yield process
    finally:
        process.kill()
        process.communicate(timeout=60)


def watchers_of(pid: int) -> list[int]:
    """The processes that wait for the end of that one, started by it."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            command = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            if any(b"owner_watcher" in word for word in command):
                found.append(int(child))
    return found


def kill_both(process: subprocess.Popen[Any]) -> None:
    """End an owner and its watcher at once: what it owned is left to whoever opens the home."""
    watchers = watchers_of(process.pid)
    os.kill(process.pid, signal.SIGSTOP)  # it would start another one
    for watcher in watchers:
        os.kill(watcher, signal.SIGKILL)
    process.kill()
    process.wait(timeout=60)


def records(home: Path) -> list[Record]:
    """What the database has, which nobody opens a Host for."""
    store = Store(Home(home).database)
    try:
        return store.all()
    finally:
        store.close()


class Guests:
    """The VMMs of some instances, told apart from whoever gets their pids later."""

    def __init__(self, found: list[Record]) -> None:
        self._pidfds = [os.pidfd_open(record.vmm.process.pid) for record in found if record.vmm is not None]

    def ended_after_s(self, since_s: float, limit_s: float) -> float:
        """Wait for the end of all: so long after `since_s` (time.monotonic). Fails the test otherwise."""
        poll = select.poll()
        for pidfd in self._pidfds:
            poll.register(pidfd, select.POLLIN)
        left = set(self._pidfds)
        while left:
            left_s = since_s + limit_s - time.monotonic()
            assert left_s > 0, f"{len(left)} of {len(self._pidfds)} VMMs run on after {limit_s} s"
            for pidfd, _ in poll.poll(left_s * 1000):
                left.discard(pidfd)
                poll.unregister(pidfd)
        return time.monotonic() - since_s

    def alive(self) -> int:
        """How many of them run."""
        poll = select.poll()
        for pidfd in self._pidfds:
            poll.register(pidfd, select.POLLIN)
        return len(self._pidfds) - len(poll.poll(0))

    def close(self) -> None:
        """Close what tells them apart."""
        for pidfd in self._pidfds:
            os.close(pidfd)


def why_unclean(home: Path) -> str | None:
    """What a killed process has left that nobody has cleaned up yet, found without opening the home."""
    place = Home(home)
    store = Store(place.database)
    try:
        found, snapshots = store.all(), store.snapshots.all()
    finally:
        store.close()
    running = {process.pid for of_one in spawn.spawned_below(place.instances).values() for process in of_one}
    there = {
        "a wish to clean": [path.name for path in home.iterdir() if path.name in (TODO, DOING)],
        "owned": [record.name for record in found if _is_left(record.owner)],
        "being changed": [
            record.name for record in found if record.pending is not None and _is_left(record.pending.by)
        ],
        "snapshots being made": [snapshot.id for snapshot in snapshots if _is_left(snapshot.maker)],
        "directories": {path.name for path in place.instances.iterdir()} ^ {record.id for record in found},
        "snapshots' directories": {path.name for path in place.snapshots.iterdir()}
        ^ {snapshot.id for snapshot in snapshots},
        "temporary files": [file for path in place.instances.iterdir() for file in _temporary(path)],
        "staging": list(place.staging.iterdir()),
        "pool": list(place.pool.iterdir()) if place.pool.exists() else [],
        "VMMs": running ^ {record.vmm.process.pid for record in found if record.vmm is not None},
    }
    return next((f"{what}: {which}" for what, which in there.items() if which), None)


def _temporary(directory: Path) -> list[Path]:
    try:
        return list(directory.glob(".tmp-*"))
    except FileNotFoundError:
        return []  # it goes at this moment


def _is_left(process: ProcessRef | None) -> bool:
    return process is not None and liveness.is_dead(process)


async def until_clean(home: Path) -> None:
    """Wait until a killed process has nothing there any more, though nobody opens the home. Fails the test
    when that takes long: guests have gone long before.
    """
    why: str | None = ""
    with anyio.move_on_after(CLEAN_LIMIT_S):
        while (why := why_unclean(home)) is not None:
            await anyio.sleep(0.05)
    assert why is None, why
