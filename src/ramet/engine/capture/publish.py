"""Publish the files of a capture after its pause: write, sync, describe, then the manifest."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from ramet.disk.chains import chain_of
from ramet.disk.volumes import files_of
from ramet.drivers.interface import Ability
from ramet.engine.capture.plan import Plan, fixed_files, known_part
from ramet.engine.maintenance.memory_jobs import TEMPORARY
from ramet.engine.manifest import USUAL_FORMAT, Manifest, Memory, Part, Source
from ramet.memory.delta import write_delta, write_mem_file, write_merged
from ramet.memory.integrity import digest, facts_of
from ramet.memory.mappings import identity_of
from ramet.memory.pages import Pages, Stretch
from ramet.model.record import Machine, RunningVmm
from ramet.paths import (
    DELTA_FILE,
    MANIFEST_FILE,
    MEM_FILE,
    VMSTATE_FILE,
)
from ramet.progress import report
from ramet.system import threads
from ramet.system.clock import now
from ramet.system.cpu import host_cpu
from ramet.system.files import TEMPORARY_PREFIX, open_regular
from ramet.system.kvm_kind import kvm_kind
from ramet.system.memfile import write_out
from ramet.system.publishing import fsync_directory, sync, write_durably
from ramet.system.share import link_or_copy

_FORMER_BASE: Final = f"{TEMPORARY_PREFIX}former-{MEM_FILE}-"


class UntilCancelled:
    """Pages that are there until the call is cancelled whose thread asks for them."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages

    @property
    def changed_bytes(self) -> int:
        """Number of changed bytes, zeros included."""
        return self._pages.changed_bytes

    def batches(self) -> Iterator[list[Stretch]]:
        """Yield the pages in batches (`Pages.batches`).

        Raises what `anyio` raises for a cancellation, too.
        """
        written, total = 0, self._pages.changed_bytes
        for batch in self._pages.batches():
            threads.check_cancelled()
            report("writing memory", written, total)
            yield batch
            written += sum(stretch.length_bytes for stretch in batch)


def publish(
    plan: Plan,
    pages: Pages,
    vmstate_fd: int,
    digests: bool,
    labels: dict[str, str],
    *,
    whole: bool = False,
) -> Manifest:
    """Write, sync and describe everything that the pause gave. Blocks; for a worker thread.

    With `whole` the memory is one mem-file, if its base, on which the VMM runs, can be kept beside. Raises
    `FilesystemError`, and what reading the pages raises; the files are no capture then.
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
    elif whole and (former := _keep_base(plan)) is not None:
        write_merged(directory / MEM_FILE, former, pages, mode=plan.base.facts.mode)
        parts[MEM_FILE] = None
    else:
        facts = write_delta(
            directory / DELTA_FILE,
            pages,
            memory_bytes=record.machine.memory_bytes,
            base=directory / MEM_FILE,
        )
        memory = Memory(delta=DELTA_FILE, delta_bytes=facts.applied_bytes)
        parts[DELTA_FILE] = None
    (directory / VMSTATE_FILE).unlink(missing_ok=True)  # a link to the capture that it was restored from
    write_out(vmstate_fd, directory / VMSTATE_FILE, mode=0o444)
    parts[VMSTATE_FILE] = None
    known = {base.file: base.part_digest for base in record.machine.bases}
    for name in fixed_files(record.machine):
        if (directory / name).exists():
            part = known_part(directory / name, plan.origin, name)
            parts[name] = part if part.digest else Part(facts=part.facts, digest=known.get(name))
    machine = _with_chains(plan.own, record.machine)
    for disk in machine.disks:
        for name in files_of(disk):
            if plan.goes_on and disk.format == "qcow2":
                link_or_copy(plan.own / name, directory / name)
            (directory / name).chmod(0o444)
            parts[name] = known_part(directory / name, plan.origin, name)
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
        image_digest=record.image_digest,
        main=record.main,
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


def _keep_base(plan: Plan) -> Path | None:
    """Give the mem-file that the VMM has mapped a second name; None where it can't have one more."""
    former = plan.own / f"{_FORMER_BASE}{secrets.token_hex(4)}"
    try:
        former.hardlink_to(plan.own / MEM_FILE)
    except OSError:
        return None  # its limit of links: the capture gets a delta
    return former


def drop_former_base(directory: Path) -> None:
    """Remove the second name of the mem-file on which an instance ran before it became a capture."""
    for former in directory.glob(f"{_FORMER_BASE}*"):
        former.unlink(missing_ok=True)


def _with_chains(own: Path, machine: Machine) -> Machine:
    """Return the machine with the files that its disks really lie over.

    A chain may have been shortened since the record was written.
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


def _restore_base(directory: Path, vmm: RunningVmm) -> None:
    """Give the mem-file that the VMM has mapped its name back, if a capture was about to have the name."""
    for former in directory.glob(f"{_FORMER_BASE}*"):
        if identity_of(former) == (vmm.mem_device, vmm.mem_inode):
            former.replace(directory / MEM_FILE)
        former.unlink(missing_ok=True)  # rename(2) does nothing between two names of one file


def drop_unpublished(directory: Path, vmm: RunningVmm | None) -> None:
    """Remove the leftovers of an unfinished publication from the directory of an instance that is no capture.

    A VMM has no use for a mem-file that was saved from it, which may be as large as its guest's RAM: the
    mem-file that it has mapped stays, with or without a name.
    """
    for leftover in directory.glob(f"{TEMPORARY_PREFIX}*"):
        # A process that compresses or unpacks may live.
        if not leftover.name.startswith((TEMPORARY, _FORMER_BASE)):
            leftover.unlink(missing_ok=True)
    if vmm is None:
        drop_former_base(directory)
    else:
        _restore_base(directory, vmm)
        for part in (MANIFEST_FILE, DELTA_FILE, *(() if vmm.mem_inode else (MEM_FILE, VMSTATE_FILE))):
            (directory / part).unlink(missing_ok=True)
        mem = directory / MEM_FILE
        if mem.exists() and identity_of(mem) != (vmm.mem_device, vmm.mem_inode):
            mem.unlink()
