"""The facts of a newly started VMM for its record."""

from __future__ import annotations

from pathlib import Path

import msgspec

from ramet.drivers.interface import Driver, Vmm
from ramet.errors import UnavailableError, WrongStateError
from ramet.memory.mappings import FileIdentity, identity_of
from ramet.memory.ram import locate_ram
from ramet.model.record import Machine, ProcessRef, RamRange, RunningVmm
from ramet.paths import CONSOLE_LOG, MEM_FILE


def running_vmm(
    driver: Driver, directory: Path, machine: Machine, vmm: Vmm, *, console_start: int
) -> RunningVmm:
    """Return the facts of a VMM that was just started in `directory`, and has its guest's RAM.

    `console_start` is what `console_bytes` returned before its guest could say anything. Raises `VmmError`
    when the VMM has ended, `WrongStateError` when its RAM can't be found, `UnavailableError` when the kernel
    doesn't permit looking.
    """
    path = directory / MEM_FILE
    mem = identity_of(path) if path.exists() else None
    ram = _locate(driver, machine, vmm.process, mem)
    device, inode = mem or (0, 0)
    return RunningVmm(
        process=vmm.process, mem_device=device, mem_inode=inode, ram=ram, console_start=console_start
    )


def booted_vmm(
    driver: Driver, directory: Path, machine: Machine, vmm: Vmm, *, console_start: int
) -> RunningVmm:
    """Return the facts of a VMM that boots, as `running_vmm`, if necessary without its RAM.

    The guest runs even if the kernel lets nobody look at its RAM, or if nothing proves where the RAM lies.
    Only a capture needs that; `with_ram` raises the error then.
    """
    try:
        return running_vmm(driver, directory, machine, vmm, console_start=console_start)
    except (UnavailableError, WrongStateError) as error:
        path = directory / MEM_FILE
        if isinstance(error, WrongStateError) and path.exists():
            raise  # its guest would write into a file that is to be shared, say
        device, inode = identity_of(path) if path.exists() else (0, 0)
        return RunningVmm(
            process=vmm.process, mem_device=device, mem_inode=inode, console_start=console_start
        )


def with_ram(driver: Driver, machine: Machine, running: RunningVmm) -> RunningVmm:
    """Return the facts of a VMM with its RAM, found now if it couldn't be found when the VMM booted.

    Errors as `running_vmm`.
    """
    if running.ram:
        return running
    mem = FileIdentity(running.mem_device, running.mem_inode) if running.mem_inode else None
    return msgspec.structs.replace(running, ram=_locate(driver, machine, running.process, mem))


def console_bytes(directory: Path) -> int:
    """Return the size of the console of the VMM in `directory`, with the output of earlier starts."""
    try:
        return (directory / CONSOLE_LOG).stat().st_size
    except FileNotFoundError:
        return 0


def _locate(
    driver: Driver, machine: Machine, process: ProcessRef, mem: FileIdentity | None
) -> tuple[RamRange, ...]:
    regions = [region.length_bytes for region in driver.ram_regions(machine)]
    return locate_ram(process.pid, mem=mem, regions=regions)
