"""The files of a capture: what is known and linked before the pause, what is written after it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ramet.disk.chains import chain_of
from ramet.disk.volumes import files_of, make_overlay, next_overlay
from ramet.drivers.api import Ability, Driver, FreezesDisks
from ramet.engine.manifest import USUAL_FORMAT, Manifest, Memory, Part, Source, read_manifest
from ramet.engine.running import with_ram
from ramet.errors import DamagedError
from ramet.host import processes, threads
from ramet.host.clock import now
from ramet.host.cpu import host_cpu
from ramet.host.files import (
    filesystem_errors,
    fsync_directory,
    has_data,
    open_regular,
    sync,
    write_durably,
)
from ramet.host.kvm_kind import kvm_kind
from ramet.host.share import share_file
from ramet.host.staging import write_out
from ramet.memory.delta import write_delta, write_mem_file
from ramet.memory.integrity import digest, facts_of
from ramet.memory.mappings import FileIdentity, identity_of, open_file_has_data
from ramet.memory.pages import Pages, Stretch
from ramet.model.record import Disk, Machine, Record, RunningVmm
from ramet.paths import (
    DELTA_FILE,
    INITRAMFS_FILE,
    KERNEL_FILE,
    MANIFEST_FILE,
    MEM_FILE,
    ORIGIN_FILE,
    VMSTATE_FILE,
)


@dataclass(frozen=True)
class Plan:
    """What is known before the pause."""

    record: Record
    running: RunningVmm
    driver: Driver
    driver_version: str
    own: Path
    """The instance's directory."""
    directory: Path
    """The capture's: the same one where the VMM is to end."""
    goes_on: bool
    base: Part | None
    """The mem-file that the guest runs on, where it has something in it."""
    origin: Manifest | None
    """Of the capture that the guest was brought up from."""
    overlays: tuple[tuple[Disk, Disk], ...]
    """Disks that go on in a new file: the frozen one, the new one."""

    @property
    def mem(self) -> FileIdentity | None:
        """The mem-file that the VMM has mapped."""
        if not self.running.mem_inode:
            return None
        return FileIdentity(self.running.mem_device, self.running.mem_inode)


def prepare(
    record: Record,
    running: RunningVmm,
    driver: Driver,
    version: str,
    own: Path,
    directory: Path,
    goes_on: bool,
    vmm: object,
) -> Plan:
    """Everything before the pause: parts that don't change are linked, overlays made.

    Raises `DamagedError` when the mem-file isn't the one that the VMM has mapped, `FilesystemError`, and what
    `with_ram` raises; what was linked by then stays where it is, overlays don't.
    """
    running = with_ram(driver, record.machine, running)
    origin = read_manifest(own, ORIGIN_FILE) if (own / ORIGIN_FILE).exists() else None
    base = _base(own, running, origin)
    if goes_on:
        if base is not None:
            share_file(own / MEM_FILE, directory / MEM_FILE)
        for name in (KERNEL_FILE, INITRAMFS_FILE):
            if (own / name).exists():
                share_file(own / name, directory / name)
    overlays: list[tuple[Disk, Disk]] = []
    try:
        if goes_on and isinstance(vmm, FreezesDisks):
            for disk in record.machine.disks:
                new = next_overlay(disk, own)
                make_overlay(own, new)
                overlays.append((disk, new))
    except BaseException:
        drop_unopened(own, overlays)
        raise
    return Plan(record, running, driver, version, own, directory, goes_on, base, origin, tuple(overlays))


def drop_unopened(own: Path, overlays: Iterable[tuple[Disk, Disk]]) -> None:
    """Remove overlays that no VMM has opened. Never to be called once a disk may have been switched to one:
    what is in it is the disk's then (`volumes.uppermost`).
    """
    for _, new in overlays:
        (own / new.file).unlink(missing_ok=True)


def _base(own: Path, running: RunningVmm, origin: Manifest | None) -> Part | None:
    """What is known of the mem-file that the guest runs on; None when it has none, or one that is all
    holes.
    """
    if not running.mem_inode:
        return None
    mem = own / MEM_FILE
    if not mem.exists() or identity_of(mem) != (running.mem_device, running.mem_inode):
        # A freeze that failed had put the captured memory in the place of the one that is all holes.
        if open_file_has_data(processes.local_pid(running.process), running.mem_inode) is False:
            return None
        raise DamagedError(f"{mem} isn't the file any more that its VMM has mapped")
    with filesystem_errors("look at", mem):
        if not has_data(mem):
            return None
    return _known_part(mem, origin, origin.memory.base if origin is not None else MEM_FILE)


def _known_part(path: Path, origin: Manifest | None, name: str) -> Part:
    """A part that was published before: its digest is known when nothing about it has changed since."""
    facts = facts_of(path)
    before = origin.parts.get(name) if origin is not None else None
    same = before is not None and (before.facts.size_bytes, before.facts.mtime_ns) == (
        facts.size_bytes,
        facts.mtime_ns,
    )
    return Part(facts=facts, digest=before.digest if before is not None and same else None)


class UntilCancelled:
    """Pages that are there until the call is cancelled whose thread asks for them."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages

    @property
    def changed_bytes(self) -> int:
        """As `Pages.changed_bytes`."""
        return self._pages.changed_bytes

    def batches(self) -> Iterator[list[Stretch]]:
        """As `Pages.batches`. Raises what `anyio` raises for a cancellation, too."""
        for batch in self._pages.batches():
            threads.check_cancelled()
            yield batch


def publish(plan: Plan, pages: Pages, vmstate_fd: int, digests: bool, labels: dict[str, str]) -> Manifest:
    """Write, sync and describe everything that the pause gave. Blocks; for a worker thread.

    Raises `FilesystemError`, and what reading the pages raises; what is there of the files then is no
    capture.
    """
    directory, record = plan.directory, plan.record
    parts: dict[str, Part | None] = {MEM_FILE: plan.base}
    memory = Memory()
    if plan.base is None:
        # A VMM that insists on opening the mem-file for writing needs the permission, unless root's is
        # enough.
        read_only = Ability.OPENS_MEM_FILE_READ_ONLY in plan.driver.abilities
        mode = 0o444 if read_only or os.geteuid() == 0 else 0o600
        write_mem_file(directory / MEM_FILE, pages, memory_bytes=record.machine.memory_bytes, mode=mode)
    else:
        facts = write_delta(
            directory / DELTA_FILE,
            pages,
            memory_bytes=record.machine.memory_bytes,
            base=directory / MEM_FILE,
        )
        memory = Memory(delta=DELTA_FILE, delta_bytes=facts.applied_bytes)
        parts[DELTA_FILE] = None
    (directory / VMSTATE_FILE).unlink(missing_ok=True)  # a link to what it was restored from
    write_out(vmstate_fd, directory / VMSTATE_FILE, mode=0o444)
    parts[VMSTATE_FILE] = None
    for name in (KERNEL_FILE, INITRAMFS_FILE):
        if (directory / name).exists():
            parts[name] = _known_part(directory / name, plan.origin, name)
    machine = _with_chains(plan.own, record.machine)
    for disk in machine.disks:
        for name in files_of(disk):
            if plan.goes_on and disk.format == "qcow2":
                share_file(plan.own / name, directory / name)
            (directory / name).chmod(0o444)
            parts[name] = _known_part(directory / name, plan.origin, name)
    described = {name: _described(directory / name, part, digests) for name, part in parts.items()}
    manifest = Manifest(
        format=USUAL_FORMAT,
        driver=record.driver,
        driver_version=plan.driver_version,
        machine=machine,
        arguments=plan.driver.arguments(machine),
        ram=plan.driver.ram_regions(machine),
        memory=memory,
        image=record.image,
        kernel_version=record.kernel_version,
        generation=record.generation,
        host_cpu=host_cpu() if record.machine.accelerator == "kvm" else None,
        kvm=kvm_kind() if record.machine.accelerator == "kvm" else None,
        source=Source(id=record.id, name=record.name, state=record.state, parent=record.parent),
        labels=labels,
        created_at=now(),
        parts=described,
    )
    write_durably(directory / MANIFEST_FILE, manifest.encoded())
    if plan.goes_on:
        fsync_directory(directory.parent)
    return manifest


def _with_chains(own: Path, machine: Machine) -> Machine:
    """The machine with the files that its disks lie over in fact: a chain may have been shortened since the
    record was written.
    """
    disks = []
    for disk in machine.disks:
        if disk.format == "qcow2":
            disk = msgspec.structs.replace(disk, backing=chain_of(own, disk.file)[:-1])
        disks.append(disk)
    return msgspec.structs.replace(machine, disks=tuple(disks))


def _described(path: Path, known: Part | None, digests: bool) -> Part:
    if known is None or known.digest is None:
        # Also a kernel: one copied from another filesystem gets its last blocks when it is written back.
        with open_regular(path) as descriptor:
            sync(descriptor)
    facts = facts_of(path)
    if known is not None and known.digest is not None:
        return Part(facts=facts, digest=known.digest)
    return Part(facts=facts, digest=digest(path) if digests else None)
