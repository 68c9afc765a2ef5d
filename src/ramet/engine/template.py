"""Promotion: a living instance becomes a template, its memory a mem-file that is never written again.

The order is pause, vmstate, *then* list and copy the changed pages (saving vmstate itself dirties guest
pages), or have the VMM write both, where it can't do without; publish every part under a name of its own;
commit the row; only then end the VMM. Until the row says `template` the instance is what it was.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import anyio
import anyio.to_thread

from ramet.disk.volumes import files_of
from ramet.drivers.api import Ability, SavesSnapshot, SavesState
from ramet.engine.boot import now
from ramet.engine.changes import changing, drop_unpublished
from ramet.engine.context import Context
from ramet.engine.manifest import FORMAT, Manifest, Part
from ramet.errors import NotFoundError, UnavailableError, VmmError
from ramet.host import processes
from ramet.host.cpu import host_cpu
from ramet.host.files import (
    TEMPORARY_PREFIX,
    filesystem_errors,
    new_file,
    open_regular,
    publish,
    sync,
    write_durably,
)
from ramet.memory.capture import changed_runs, find_mapping, write_mem_file
from ramet.memory.holes import dig_holes
from ramet.memory.integrity import digest, facts_of
from ramet.model.lifecycle import Move, State
from ramet.model.record import Record, RunningVmm
from ramet.paths import INITRAMFS_FILE, KERNEL_FILE, MANIFEST_FILE, MEM_FILE, RECEIPT_FILE, VMSTATE_FILE


async def promote(context: Context, record: Record) -> Record:
    """Make a template of a running or paused instance. Its VMM is gone afterwards.

    Raises `WrongStateError`; `UnavailableError` when its memory may not be read; `FilesystemError` when it
    doesn't fit; `VmmError`. The instance is then as it was, and runs if it ran; only when ending its VMM is
    what fails is it a template already, and the next ramet process ends the VMM.
    """
    async with changing(context, record, "template") as record:
        record.moved(Move.TEMPLATE)
        if record.vmm is None:
            raise VmmError(f"{record.name} has no VMM")
        driver = context.driver(record.driver)
        version = await driver.version()
        directory = context.directory(record)
        vmm = context.vmm(record)
        running = record.vmm
        try:
            if record.state is State.RUNNING:
                await vmm.pause()
            vmstate = _temporary(VMSTATE_FILE)
            # A VMM that insists on opening the mem-file for writing needs the permission, unless root's is
            # enough.
            read_only = Ability.OPENS_MEM_FILE_READ_ONLY in driver.abilities
            mode = 0o444 if read_only or os.geteuid() == 0 else 0o600
            if isinstance(vmm, SavesSnapshot):
                mem = _temporary(MEM_FILE)
                await vmm.save_snapshot(vmstate, mem)
                await anyio.to_thread.run_sync(_publish_saved_memory, directory, mem, mode)
            elif isinstance(vmm, SavesState):
                with filesystem_errors("write", directory / vmstate), new_file(directory / vmstate) as file:
                    await vmm.save_vmstate(file)
                await anyio.to_thread.run_sync(_publish_memory, directory, running, mode)
            else:
                raise UnavailableError(f"{driver.name} {version} can't save a guest's state")
            await anyio.to_thread.run_sync(_publish_vmstate, directory, vmstate)
            await anyio.to_thread.run_sync(_publish_manifest, directory, record, version)
            template = context.store.change(record.id, lambda one: one.moved(Move.TEMPLATE), durable=True)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await _undo(context, record, running)
            raise
        with anyio.CancelScope(shield=True):
            await processes.kill(running.process)
            (directory / RECEIPT_FILE).unlink(missing_ok=True)
        return template


def _temporary(name: str) -> str:
    return f"{TEMPORARY_PREFIX}{name}-{secrets.token_hex(4)}"


def _publish_memory(directory: Path, running: RunningVmm, mode: int) -> None:
    """What the VMM has in place of the mem-file's pages, over the mem-file's own, as a new file under the old
    name.

    The old inode isn't touched: forks, this one's siblings, may have it mapped (I1).
    """
    pid = running.process.pid
    mappings = find_mapping(pid, (running.mem_device, running.mem_inode))
    mem = directory / MEM_FILE
    write_mem_file(mem, pid, changed_runs(pid, mappings), mem, mode=mode)


def _publish_saved_memory(directory: Path, saved: str, mode: int) -> None:
    """A mem-file that the VMM has written, zeros and all, with holes instead of them."""
    dig_holes(directory / saved)
    (directory / saved).chmod(mode)
    publish(directory / saved, directory / MEM_FILE)


def _publish_vmstate(directory: Path, temporary: str) -> None:
    (directory / temporary).chmod(0o444)
    publish(directory / temporary, directory / VMSTATE_FILE)


def _publish_manifest(directory: Path, record: Record, driver_version: str) -> None:
    disks = [name for disk in record.machine.disks for name in files_of(disk)]
    for name in disks:
        (directory / name).chmod(0o444)
    names = [MEM_FILE, VMSTATE_FILE, KERNEL_FILE, INITRAMFS_FILE, *disks]
    present = [name for name in names if (directory / name).exists()]
    for name in present:
        # A kernel copied from another filesystem gets its last blocks when it is written back.
        with open_regular(directory / name) as descriptor:
            sync(descriptor)
    parts = {
        name: Part(facts=facts_of(directory / name), digest=digest(directory / name)) for name in present
    }
    manifest = Manifest(
        format=FORMAT,
        driver=record.driver,
        driver_version=driver_version,
        machine=record.machine,
        image=record.image,
        kernel_version=record.kernel_version,
        generation=record.generation,
        host_cpu=host_cpu() if record.machine.accelerator == "kvm" else None,
        created_at=now(),
        parts=parts,
    )
    write_durably(directory / MANIFEST_FILE, manifest.encoded())


async def _undo(context: Context, record: Record, running: RunningVmm) -> None:
    """The source goes on first; then the space is given back.

    Neither step's failure keeps the other from being tried. Nothing happens when the row is there already:
    what interrupted came too late.
    """
    try:
        if context.store.get(record.id).state is State.TEMPLATE:
            return
    except NotFoundError:
        return
    try:
        if record.state is State.RUNNING and processes.is_alive(running.process):
            await context.vmm(record).resume()
    finally:
        drop_unpublished(context.directory(record), running)
