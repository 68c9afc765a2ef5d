"""What has to hold of a home after each step, whatever the step was."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import ramet
from ramet.disk.volumes import files_of
from ramet.engine.manifest import Manifest, check_part, files_there, read_manifest
from ramet.memory.integrity import digest, facts_of
from ramet.model.lifecycle import State
from ramet.model.record import Record
from ramet.paths import (
    CONFIRMED_FILE,
    CONSOLE_LOG,
    EVENTS_LOG,
    MANIFEST_FILE,
    MEM_FILE,
    ORIGIN_FILE,
    VMM_LOG,
    Home,
)
from ramet.system import liveness, spawn
from ramet.system.files import TEMPORARY_PREFIX
from ramet.system.locks import file_lock
from tests.endurance.hunt.guests import require
from tests.endurance.hunt.model import Family

WORKER_LIMIT_S = 90.0
_ALWAYS = {"vmstate", "kernel", "initramfs", "config.json", "metrics.log", "lifecycle.lock"}
_LOGS = {f"{log}{end}" for log in (CONSOLE_LOG, VMM_LOG, EVENTS_LOG) for end in ("", ".1")}


class Inodes:
    """Every file that was ever published in a home, for as long as it has a name: its content may never
    change (I1).

    Each is held open, so that its inode can't become another file's.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[int, str, Path]] = {}
        """By inode: a descriptor, the digest, where it was found."""

    def close(self) -> None:
        """Let go of all."""
        for descriptor, _, _ in self._known.values():
            os.close(descriptor)
        self._known.clear()

    def look(self, home: Home) -> int:
        """Read every published file. Raises `CorruptionError` when one isn't what it was, or isn't what its
        manifest says; returns how many there are.
        """
        for inode, (descriptor, _, _) in list(self._known.items()):
            if os.fstat(descriptor).st_nlink == 0:
                os.close(descriptor)
                del self._known[inode]
        seen: dict[int, str] = {}
        for path, said, where in _published(home):
            inode = path.lstat().st_ino
            if inode not in seen:
                seen[inode] = digest(path)
            found = seen[inode]
            require(said in (None, found), f"{path} isn't what {where} says")
            if inode not in self._known:
                self._known[inode] = os.open(path, os.O_RDONLY | os.O_CLOEXEC), found, path
        for inode, (descriptor, before, path) in self._known.items():
            now = seen.get(inode) or digest_of_descriptor(descriptor)
            require(now == before, f"the published inode {inode}, once {path}, has another content now")
        return len(self._known)


def digest_of_descriptor(descriptor: int) -> str:
    """The digest of an open file, by whichever name it has now."""
    copy = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _digest_through(copy)
    finally:
        os.close(copy)


def _digest_through(descriptor: int) -> str:
    from ramet.memory import integrity

    size = os.fstat(descriptor).st_size
    return integrity.digest_of_blocks(size, integrity._blocks(descriptor, size))


def _published(home: Home) -> Iterable[tuple[Path, str | None, str]]:
    """Each part of each capture, and of what a living instance was restored from: path, digest as the
    manifest has it, which manifest.
    """
    for directory in (*home.snapshots.iterdir(), *home.instances.iterdir()):
        if (directory / MANIFEST_FILE).exists():
            manifest = read_manifest(directory)
            for name in files_there(manifest, directory):
                if (part := manifest.parts.get(name)) is not None:
                    check_part(manifest, directory, name)
                    yield directory / name, part.digest, f"{directory}/{MANIFEST_FILE}"
        elif (directory / ORIGIN_FILE).exists():
            yield from _inherited(directory, read_manifest(directory, ORIGIN_FILE))


def _inherited(directory: Path, origin: Manifest) -> Iterable[tuple[Path, str | None, str]]:
    raw = {disk.file for disk in origin.machine.disks if disk.format == "raw"}
    for part, facts in origin.parts.items():
        name = MEM_FILE if part == origin.memory.base else part
        # A raw disk is a copy, and the guest's own; a chain may have been shortened, a cold start has memory
        # of its own.
        if name in raw or not (directory / name).exists():
            continue
        if name in (MEM_FILE, "vmstate") and facts_of(directory / name) != facts.facts:
            continue
        yield directory / name, facts.digest, f"{directory}/{ORIGIN_FILE}"


async def worker_at_rest(home: Home) -> None:
    """Wait until the home's worker has nothing more to do. Raises `LockBusyError`, `CorruptionError`."""
    import anyio

    with anyio.move_on_after(WORKER_LIMIT_S):
        while home.work_to_do.exists() or home.work_under_way.exists():
            await anyio.sleep(0.02)
        async with file_lock(home.worker_lock, wait_s=WORKER_LIMIT_S):
            pass
    require(
        not home.work_to_do.exists() and not home.work_under_way.exists(), "the home's worker doesn't begin"
    )


def check_home(host: ramet.Host, family: Family) -> None:
    """Rows, directories, files and processes are those of the family, and no others. Raises
    `CorruptionError`.
    """
    home = Home(host.home)
    store = host._opened.store
    records = {record.id: record for record in store.all()}
    rows = store.snapshots.all()
    _same("instances", records.keys(), family.guests.keys())
    _same("snapshots", (row.id for row in rows), family.snapshots.keys())
    _same("instances' directories", (path.name for path in home.instances.iterdir()), records)
    _same("snapshots' directories", (path.name for path in home.snapshots.iterdir()), family.snapshots)
    _same("staged directories", (path.name for path in home.staging.iterdir()), ())
    for row in rows:
        require(row.maker is None, f"snapshot {row.name} is still being made")
    for record in records.values():
        require(record.pending is None, f"{record.name} is marked: {record.pending}")
        require(record.owner is None, f"{record.name} has an owner")
        _check_files(home.instance(record.id), record)
    for row in rows:
        directory = home.snapshot(row.id)
        allowed = {MANIFEST_FILE, *files_there(read_manifest(directory), directory)}
        found = {path.name for path in directory.iterdir()} - {CONFIRMED_FILE}
        _same(f"files of snapshot {row.name}", found, allowed)
    living = {
        (directory.name, process.pid)
        for directory, found in spawn.spawned_below(home.instances).items()
        for process in found
    }
    recorded = {
        (row.id, row.vmm.process.pid)
        for row in records.values()
        if row.vmm is not None and liveness.is_alive(row.vmm.process)
    }
    _same("VMMs", living, recorded)


def _check_files(directory: Path, record: Record) -> None:
    allowed = _ALWAYS | _LOGS
    if record.state in {State.TEMPLATE, State.STANDBY}:
        allowed |= {MANIFEST_FILE, ORIGIN_FILE, *files_there(read_manifest(directory), directory)}
    else:
        allowed |= {MEM_FILE, ORIGIN_FILE}
        allowed |= {name for disk in record.machine.disks for name in files_of(disk)}
    for path in directory.iterdir():
        name = path.name
        fine = name in allowed or path.is_socket() or (name.endswith(".lock") and path.stat().st_size == 0)
        what = "unpublished" if name.startswith(TEMPORARY_PREFIX) else "of no use"
        require(fine, f"{record.name} ({record.state}) has a file {name} that is {what}")


def _same(what: str, found: Iterable[object], wanted: Iterable[object]) -> None:
    found, wanted = set(found), set(wanted)
    if found != wanted:
        require(False, f"{what}: {found - wanted} too many, {wanted - found} missing")
