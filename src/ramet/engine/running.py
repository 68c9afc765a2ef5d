"""What the record keeps of a VMM that was just started."""

from __future__ import annotations

from pathlib import Path

from ramet.drivers.api import Driver, Vmm
from ramet.memory.mappings import identity_of
from ramet.memory.ram import locate_ram
from ramet.model.record import Machine, RunningVmm
from ramet.paths import MEM_FILE


def running_vmm(driver: Driver, directory: Path, machine: Machine, vmm: Vmm) -> RunningVmm:
    """What the record keeps of a VMM that was just started in `directory`, and has its guest's RAM.

    Raises `VmmError` when it has ended, `WrongStateError` when its RAM can't be found.
    """
    path = directory / MEM_FILE
    mem = identity_of(path) if path.exists() else None
    regions = [one.length_bytes for one in driver.ram_regions(machine)]
    ram = locate_ram(vmm.process.pid, mem=mem, regions=regions)
    device, inode = mem or (0, 0)
    return RunningVmm(process=vmm.process, mem_device=device, mem_inode=inode, ram=ram)
