"""What the record keeps of a VMM that was just started."""

from __future__ import annotations

from pathlib import Path

import msgspec

from ramet.drivers.api import Driver, Vmm
from ramet.memory.mappings import FileIdentity, identity_of
from ramet.memory.ram import locate_ram
from ramet.model.record import Machine, RunningVmm
from ramet.paths import MEM_FILE


def running_vmm(driver: Driver, directory: Path, machine: Machine, vmm: Vmm) -> RunningVmm:
    """What the record keeps of a VMM that was just started in `directory`, and has its guest's RAM.

    Raises `VmmError` when it has ended, `WrongStateError` when its RAM can't be found.
    """
    path = directory / MEM_FILE
    device, inode = identity_of(path) if path.exists() else (0, 0)
    return with_ram(
        RunningVmm(process=vmm.process, mem_device=device, mem_inode=inode), driver=driver, machine=machine
    )


def with_ram(running: RunningVmm, *, driver: Driver, machine: Machine) -> RunningVmm:
    """`running` with the places of its guest's RAM, which ramet didn't always note. Errors as
    `running_vmm`.
    """
    if running.ram:
        return running
    mem = FileIdentity(running.mem_device, running.mem_inode) if running.mem_inode else None
    regions = [one.length_bytes for one in driver.ram_regions(machine)]
    ram = locate_ram(running.process.pid, mem=mem, regions=regions)
    return msgspec.structs.replace(running, ram=ram)
