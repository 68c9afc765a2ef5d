"""The pool of a home: warm VMMs, as its directory shows them to every ramet process.

A warm VMM works in its own directory below `<home>/pool`, and has from the beginning the id of the instance
that it may become. Its state is in that directory's name, so that it changes by rename(2), at once, for one
of any number of processes:

    making.<id>.<process>          being made by that process
    ready.<id>.<process>.<key>     paused and waiting, for a fork of what `key` identifies
    taken.<id>.<process>           that process makes a fork of it, or removes it

Claimed, the directory becomes the instance's with its VMM, and is like any other fork's. Beside the warm VMMs
lie `controller.<process>.<n>`, one file per process that keeps a pool here, and
`wanted.<kind>.<id>.<count>.<n>`, forks that other processes report. What belongs to a dead process is deleted
when a home is opened.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal, NamedTuple

import msgspec

from ramet.disk.volumes import ForkedDisk
from ramet.engine.manifest import Manifest
from ramet.errors import RametError
from ramet.model.record import Machine, ProcessRef, RunningVmm
from ramet.model.schema import WarmState
from ramet.paths import WARM_FILE, Home
from ramet.system import liveness, owners, process_ref, processes, spawn, threads
from ramet.system.files import TEMPORARY_PREFIX, remove_tree
from ramet.system.share import Shared

_CONTROLLER: Final = "controller"
_CONTROLLER_BEFORE: Final = "keeper"
"""The same file, of a ramet before the word changed: it may still work here, or have been killed."""
_WANTED: Final = "wanted"
_MOST_UNREAD: Final = 64


class Warm(msgspec.Struct, frozen=True, kw_only=True):
    """The facts of a ready warm VMM, in its directory."""

    driver: str
    state: WarmState = msgspec.field(name="stage")
    process: ProcessRef
    created_at: str
    source: str | None = None
    """The place in the home of the capture that it was loaded from; null: it is empty."""
    source_name: str | None = None
    machine: Machine | None = None
    running: RunningVmm | None = None
    memory: Shared | None = None
    disks: tuple[ForkedDisk, ...] = ()
    bases: tuple[Shared, ...] = ()


class Entry(NamedTuple):
    """A warm VMM's directory, as its name says."""

    state: Literal["making", "ready", "taken"]
    id: str
    holder: ProcessRef
    """The process that keeps it or, once it is taken, has it."""
    key: str
    name: str


class Wanted(NamedTuple):
    """The report that another process made `count` forks of the capture at `source` in the home."""

    source: str
    forks: int
    name: str


def key_of(directory: Path, manifest: Manifest, version: str, memory: int) -> str:
    """Return the key of exactly that capture with exactly that mem-file in a VMM of that version.

    The mem-file is identified by its inode. No other capture ever has the key.
    """
    raw = manifest.with_compressed(None) if manifest.memory.compressed is not None else manifest
    return _digest(os.fsencode(directory), msgspec.json.encode(raw), version.encode(), b"%d" % memory)


def mem_inode(directory: Path, base: str) -> int:
    """Return the inode of a capture's mem-file; 0 while it is compressed. Decompression makes a new inode."""
    try:
        return os.stat(directory / base).st_ino  # noqa: PTH116 - on each fork's path
    except OSError:
        return 0


def key_of_empty(driver: str, version: str) -> str:
    """Return the key of an empty VMM."""
    return _digest(driver.encode(), version.encode())


def _digest(*pieces: bytes) -> str:
    return hashlib.blake2b(b"\0".join(pieces), digest_size=16).hexdigest()


def names(home: Home) -> list[str]:
    """List the names in the pool's directory; empty when nobody keeps a pool."""
    try:
        return os.listdir(home.pool)  # noqa: PTH208 - on each fork's path
    except OSError:
        return []


def entries(names: Iterable[str]) -> list[Entry]:
    """Return the warm VMMs among those names."""
    return [entry for name in names if (entry := _entry(name)) is not None]


def _entry(name: str) -> Entry | None:
    match name.split("."):
        case ["making" | "taken" as state, warm_id, who]:
            key = ""
        case ["ready" as state, warm_id, who, key]:
            pass
        case _:
            return None
    holder = process_ref.from_name(who)
    return Entry(state, warm_id, holder, key, name) if holder is not None else None


def wanted(names: Iterable[str]) -> list[Wanted]:
    """Return the forks that other processes reported, among those names."""
    wishes = []
    for name in names:
        words = name.split(".")
        if words[0] == _WANTED and len(words) == 5 and words[3].isdigit():
            wishes.append(Wanted(f"{words[1]}/{words[2]}", int(words[3]), name))
    return wishes


def controllers(names: Iterable[str]) -> dict[str, ProcessRef]:
    """Return the controllers among those names, by their files."""
    return {
        name: reference
        for name in names
        if name.startswith((f"{_CONTROLLER}.", f"{_CONTROLLER_BEFORE}."))
        and (reference := process_ref.from_name(name.split(".")[1])) is not None
    }


def is_kept(names: Iterable[str]) -> bool:
    """Tell whether a process keeps a pool here that isn't known to be dead."""
    return any(not liveness.is_dead(process) for process in controllers(names).values())


def is_controller(home: Home, process: ProcessRef) -> bool:
    """Tell whether that process keeps a pool here."""
    return process in controllers(names(home)).values()


def controller_name(home: Home) -> str:
    """Make a name for the file of another controller."""
    return f"{_CONTROLLER}.{process_ref.as_name(owners.owner(home.root))}.{secrets.token_hex(4)}"


def making(home: Home, warm_id: str) -> str:
    """Return the name of a directory in which this process makes a warm VMM."""
    return f"making.{warm_id}.{process_ref.as_name(owners.owner(home.root))}"


def ready(warm_id: str, key: str) -> str:
    """Return the directory's name once the VMM can be claimed."""
    return f"ready.{warm_id}.{process_ref.as_name(process_ref.this_process())}.{key}"


def report_demand(home: Home, names: Sequence[str], source: str, count: int) -> None:
    """Report to the pool's controllers that `count` forks were made of the capture at `source`.

    `names` are those in the pool's directory. Does nothing without a controller, or when no controller reads
    the reports. Never fails.
    """
    with suppress(OSError, RametError):  # a VMM fewer is warm the next time
        if not is_kept(names) or len(wanted(names)) >= _MOST_UNREAD:
            return
        kind, _, source_id = source.partition("/")
        name = f"{_WANTED}.{kind}.{source_id}.{count}.{secrets.token_hex(4)}"
        os.close(os.open(home.pool / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))


def take(home: Home, entry: Entry) -> Entry | None:
    """Take a warm VMM, so that no other process has it; None when another one was quicker."""
    holder = owners.owner(home.root)
    name = f"taken.{entry.id}.{process_ref.as_name(holder)}"
    try:
        os.rename(home.pool / entry.name, home.pool / name)  # noqa: PTH104 - on each fork's path
    except OSError:
        return None
    return Entry("taken", entry.id, holder, entry.key, name)


def put_back(home: Home, taken: Entry, before: Entry) -> None:
    """Give a claimed VMM back to others. Never fails: a VMM that can't be put back is deleted later."""
    with suppress(OSError):  # it is deleted, and another is made
        (home.pool / taken.name).rename(home.pool / before.name)


def read_warm(directory: Path) -> Warm | None:
    """Read the facts of the warm VMM in a directory; None when they can't be read."""
    try:
        return msgspec.json.decode((directory / WARM_FILE).read_bytes(), type=Warm)
    except (OSError, msgspec.MsgspecError, ValueError, RecursionError):
        return None


async def end(home: Home, taken: Entry, running: Iterable[ProcessRef]) -> None:
    """End the processes in a directory that this process has taken or made, and remove it.

    Raises `UnavailableError`, `FilesystemError`; the rest is deleted when this process is gone.
    """
    for process in running:
        await processes.kill(process)
    # Not under a VMM that couldn't be ended: it may live.
    await threads.run(remove_tree, home.pool / taken.name)


async def gc(home: Home) -> None:
    """Remove what dead processes have in the pool, with their VMMs.

    The pool's directory is removed if it is empty then. The rest is left to the next process.
    """
    listing = names(home)
    if not listing and not home.pool.exists():
        return
    asked: dict[ProcessRef, bool] = {}

    def is_dead(process: ProcessRef) -> bool:
        if process not in asked:
            asked[process] = liveness.is_dead(process)
        return asked[process]

    for left in home.pool.glob(f"{TEMPORARY_PREFIX}*"):
        with suppress(OSError):
            left.unlink()  # a trial link whose maker was killed
    kept = controllers(listing)
    for name, process in kept.items():
        if is_dead(process):
            with suppress(OSError):  # another has just done it, or the next one will
                (home.pool / name).unlink()
    dead = [entry for entry in entries(listing) if is_dead(entry.holder)]
    # Taken first: a process may be forking one at this moment, and then it isn't ours to end.
    taken = [ours for entry in dead if (ours := take(home, entry)) is not None]
    if taken:
        running = spawn.spawned_below(home.pool)
        for entry in taken:
            # One that can't be ended keeps its entry, which the next ramet process finds.
            with suppress(RametError, OSError):
                await end(home, entry, _vmms_of(home, entry, running))
    if all(map(is_dead, kept.values())):
        for wish in wanted(listing):
            with suppress(OSError):  # as above
                (home.pool / wish.name).unlink()
    leave(home)


def _vmms_of(home: Home, entry: Entry, running: Mapping[Path, Sequence[ProcessRef]]) -> Sequence[ProcessRef]:
    """Return the processes of a warm VMM: the process that it names, or those in its directory.

    A VMM that names no process is half made.
    """
    warm = read_warm(home.pool / entry.name)
    return [warm.process] if warm is not None else running.get(home.pool / entry.name, [])


def leave(home: Home) -> None:
    """Remove the pool's directory unless it has entries."""
    with suppress(OSError):  # ENOTEMPTY is that; else an empty directory stays
        home.pool.rmdir()
