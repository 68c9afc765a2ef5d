"""The plan of a capture: facts and links before the pause."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ramet.disk.volumes import make_overlay, next_overlay
from ramet.drivers.interface import Driver, FreezesDisks
from ramet.engine.manifest import Manifest, Part, read_manifest
from ramet.engine.vmm.record import with_ram
from ramet.errors import DamagedError
from ramet.memory.integrity import facts_of
from ramet.memory.mappings import FileIdentity, identity_of, open_file_has_data
from ramet.model.record import Disk, Machine, Record, RunningVmm
from ramet.paths import (
    INITRAMFS_FILE,
    KERNEL_FILE,
    MEM_FILE,
    ORIGIN_FILE,
)
from ramet.system import liveness
from ramet.system.copying import has_data
from ramet.system.files import filesystem_errors
from ramet.system.share import link_or_copy


@dataclass(frozen=True)
class Plan:
    """The facts that are known before the pause."""

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
    """The mem-file that the guest runs on, if it has content."""
    origin: Manifest | None
    """The manifest of the capture that the guest was restored from."""
    overlays: tuple[tuple[Disk, Disk], ...]
    """Disks that are switched to a new file: the frozen disk, the new disk."""

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
    """Do everything before the pause: link parts that don't change, make overlays.

    Raises `DamagedError` when the mem-file isn't the one that the VMM has mapped, `FilesystemError`, and what
    `with_ram` raises; then links that were made stay, overlays don't.
    """
    running = with_ram(driver, record.machine, running)
    origin = read_manifest(own, ORIGIN_FILE) if (own / ORIGIN_FILE).exists() else None
    base = _base(own, running, origin)
    if goes_on:
        if base is not None:
            link_or_copy(own / MEM_FILE, directory / MEM_FILE)
        for name in fixed_files(record.machine):
            if (own / name).exists():
                link_or_copy(own / name, directory / name)
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


def fixed_files(machine: Machine) -> tuple[str, ...]:
    """List the files that no guest writes: what it booted, if it has them, and the parts of its image."""
    return (KERNEL_FILE, INITRAMFS_FILE, *(base.file for base in machine.bases))


def drop_unopened(own: Path, overlays: Iterable[tuple[Disk, Disk]]) -> None:
    """Remove overlays that no VMM has opened.

    Never call it once a disk may have been switched to an overlay: the overlay's content is the disk's then
    (`volumes.uppermost`).
    """
    for _, new in overlays:
        (own / new.file).unlink(missing_ok=True)


def _base(own: Path, running: RunningVmm, origin: Manifest | None) -> Part | None:
    """Return the known facts of the guest's mem-file; None when it has none, or one that is all holes."""
    if not running.mem_inode:
        return None
    mem = own / MEM_FILE
    if not mem.exists() or identity_of(mem) != (running.mem_device, running.mem_inode):
        # A failed suspend had put the captured memory in the place of the all-hole file.
        if open_file_has_data(liveness.local_pid(running.process), running.mem_inode) is False:
            return None
        raise DamagedError(f"{mem} isn't the file any more that its VMM has mapped")
    with filesystem_errors("look at", mem):
        if not has_data(mem):
            return None
    return known_part(mem, origin, origin.memory.base if origin is not None else MEM_FILE)


def known_part(path: Path, origin: Manifest | None, name: str) -> Part:
    """Describe a part that was published before: its digest is known if nothing has changed since."""
    facts = facts_of(path)
    before = origin.parts.get(name) if origin is not None else None
    same = before is not None and (before.facts.size_bytes, before.facts.mtime_ns) == (
        facts.size_bytes,
        facts.mtime_ns,
    )
    return Part(facts=facts, digest=before.digest if before is not None and same else None)
