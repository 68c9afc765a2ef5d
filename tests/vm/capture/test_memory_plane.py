"""Guest RAM of real Firecrackers, found and captured from outside, against what Firecracker itself writes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from ramet.drivers.firecracker.api import api
from ramet.errors import UnavailableError
from ramet.memory.delta import apply_delta, compact, write_delta, write_mem_file
from ramet.memory.integrity import digest
from ramet.memory.mappings import Mapping, areas, identity_of
from ramet.memory.pagemap import Run, changed_runs_by_pagemap, changed_runs_by_scan
from ramet.memory.pages import LivePages, buffer_pages
from ramet.memory.ram import changed_pages, locate_ram, ram_bytes
from ramet.model.record import Machine, RamRange
from ramet.paths import MEM_FILE
from ramet.system import rlimits
from ramet.system.copying import data_extents
from ramet.testing.driver_contract.subject import Frozen, Running, Subject, booted, restored
from ramet.units import GIB, MIB, FileOffset, HostVirtual
from tests import machines

pytestmark = [pytest.mark.vm, pytest.mark.anyio]

PAGE = 4096
GAP_END = 4 * GIB
ADDRESS = 0x200_0000


class Tracked(Subject):
    """A machine whose changes Firecracker tracks, with a balloon that is empty at first."""

    def machine(self) -> Machine:
        """The usual one with these."""
        return msgspec.structs.replace(super().machine(), track_changes=True, balloon_bytes=0)


@pytest.fixture
async def tracked() -> Tracked:
    """A probe guest under Firecracker, or a skip with the reason."""
    found = await machines.require("firecracker", "probe")
    return Tracked(found.driver, found.image, found.accelerator)


@pytest.fixture
def place(homes: Path) -> Path:
    """An empty directory for the VMs of one test."""
    return Path(tempfile.mkdtemp(dir=homes, prefix="memory-"))


def pages_of(runs: Sequence[Run]) -> set[int]:
    """The numbers of the pages in the runs."""
    return {
        page
        for run in runs
        for page in range(run.file_offset // PAGE, (run.file_offset + run.length_bytes) // PAGE)
    }


def data_pages(path: Path) -> set[int]:
    """The numbers of the pages in which a sparse file has data."""
    with path.open("rb") as file:
        extents = list(data_extents(file.fileno()))
    return {page for start, end in extents for page in range(start // PAGE, -(-end // PAGE))}


async def save(vm: Running, name: str, *, diff: bool) -> Path:
    """Have Firecracker write its guest's RAM down; the path of that file."""
    body: dict[str, object] = {
        "snapshot_type": "Diff" if diff else "Full",
        "snapshot_path": f"{name}-state",
        "mem_file_path": name,
    }
    limits = rlimits.limit_of_files(vm.vmm.process)
    rlimits.limit_files(vm.vmm.process, None)
    async with api(vm.directory, who="the test's", limit_s=60) as firecracker:
        await firecracker.call("PUT", "/snapshot/create", body)
    rlimits.limit_files(vm.vmm.process, limits)
    return vm.directory / name


async def run(subject: Subject, vm: Running, *commands: str) -> list[str]:
    """What the guest says to some commands."""
    async with subject.agent(vm) as agent:
        return [await subject.run(agent, *command.split()) for command in commands]


# Around both places at which low memory ends, by release: 3 GiB and 3.25.
@pytest.mark.parametrize("memory_mib", [256, 3072, 3100, 3328, 3380, 4096, 5120])
async def test_a_booted_guest_is_captured_from_anonymous_memory(
    tracked: Tracked, place: Path, memory_mib: int
) -> None:
    tracked.memory_bytes = memory_bytes = memory_mib * MIB
    regions = [region.length_bytes for region in tracked.driver.ram_regions(tracked.machine())]
    low = regions[0]
    marks = {ADDRESS: 0x1111, low - PAGE: 0x2222}
    if len(regions) == 2:
        marks |= {GAP_END: 0x3333, GAP_END + regions[1] - PAGE: 0x4444}
    async with booted(tracked, place / "vm") as vm:
        pid = vm.vmm.process.pid
        ram = locate_ram(pid, mem=None, regions=regions)
        await run(tracked, vm, *(f"fill {address:#x} 1 {value:#x}" for address, value in marks.items()))
        await vm.vmm.pause()
        touched = changed_pages(pid, ram, None)
        assert len(pages_of(touched)) < 4096, "nothing that the guest never touched"
        saved = await save(vm, "saved", diff=memory_bytes > GIB)
        runs = changed_pages(pid, ram, None)
        with buffer_pages(pid, runs) as buffered:
            write_mem_file(place / "buffered", buffered, memory_bytes=memory_bytes)
        write_mem_file(place / "live", LivePages(pid, runs), memory_bytes=memory_bytes)
    assert ram_bytes(ram) == memory_bytes
    assert digest(place / "buffered") == digest(place / "live") == digest(saved)
    with (place / "buffered").open("rb") as file:
        for address, value in marks.items():
            file.seek(address - (0 if address < GAP_END else GAP_END - low))
            assert int.from_bytes(file.read(8), "little") == value


async def fork_of(subject: Subject, frozen: Frozen, vm: Running) -> tuple[RamRange, ...]:
    mem = identity_of(frozen.directory / MEM_FILE)
    return locate_ram(vm.vmm.process.pid, mem=mem, regions=[subject.memory_bytes])


async def test_the_list_has_what_was_inherited_and_all_that_firecracker_logged(
    tracked: Tracked, place: Path
) -> None:
    async with booted(tracked, place / "source") as source:
        await run(tracked, source, f"fill {ADDRESS:#x} 64 0x1")
        frozen = await tracked.freeze(source)
    base = frozen.directory / MEM_FILE
    mem = identity_of(base)

    async with restored(tracked, frozen, place / "parent") as parent:
        ram = await fork_of(tracked, frozen, parent)
        pid = parent.vmm.process.pid
        assert changed_pages(pid, ram, mem) != []
        await run(tracked, parent, f"fill {ADDRESS:#x} 20 0x2", f"fill {ADDRESS + 200 * PAGE:#x} 30 0x3")
        await parent.vmm.pause()
        # An inherited delta has to be of the state that is loaded, so the state is saved with it.
        await save(parent, "saved", diff=True)
        runs = changed_pages(pid, ram, mem)
        assert data_pages(parent.directory / "saved") <= pages_of(runs)
        delta = place / "delta"
        write_delta(delta, LivePages(pid, runs), memory_bytes=tracked.memory_bytes, base=base)
        (parent.directory / "saved-state").replace(place / "state")

    machine = tracked.link(frozen, place / "child")
    vmm = await tracked.driver.restore(place / "child", machine)
    try:
        os.link(place / "state", place / "child" / "branched")
        await vmm.load_vmstate("branched")
        child = Running(place / "child", machine, vmm)
        pid = vmm.process.pid
        ram = await fork_of(tracked, frozen, child)
        apply_delta(delta, pid, ram)
        inherited = pages_of(changed_pages(pid, ram, mem))
        await vmm.resume()
        assert await run(tracked, child, f"peek {ADDRESS:#x}", f"peek {ADDRESS + 229 * PAGE:#x}") == [
            f"{2:016x}\n",
            f"{3:016x}\n",
        ]
        logged: set[int] = set()
        for turn in (1, 2, 3):
            await run(tracked, child, f"fill {ADDRESS + 300 * turn * PAGE:#x} {turn * 16:#x} {turn + 16:#x}")
            await vmm.pause()
            logged |= data_pages(await save(child, f"diff-{turn}", diff=True))
            listed = changed_pages(pid, ram, mem)
            assert logged <= pages_of(listed)
            assert inherited <= pages_of(listed)
            by_pagemap, by_scan = both_lists(pid, ram, base)
            assert by_pagemap == (listed if by_scan is None else by_scan)
            await vmm.resume()
        assert inherited - logged, "Firecracker's own log lacks what was written from outside"
        await vmm.pause()
        whole = await save(child, "whole", diff=False)
        with buffer_pages(pid, changed_pages(pid, ram, mem)) as buffered:
            write_delta(place / "again", buffered, memory_bytes=tracked.memory_bytes, base=base)
    finally:
        await vmm.kill()
    compact(base, place / "again", place / "merged")
    assert digest(place / "merged") == digest(whole)


def both_lists(pid: int, ram: Sequence[RamRange], base: Path) -> tuple[list[Run], list[Run] | None]:
    """By the page map, and by the scan where the kernel has it."""
    identity = identity_of(base)
    mappings = [
        Mapping(HostVirtual(block.host_start), block.length_bytes, FileOffset(block.file_offset), identity)
        for block in ram
    ]
    try:
        return changed_runs_by_pagemap(pid, mappings), changed_runs_by_scan(pid, mappings)
    except UnavailableError:
        return changed_runs_by_pagemap(pid, mappings), None


async def test_a_balloon_in_a_restored_guest_does_not_break_a_capture(tracked: Tracked, place: Path) -> None:
    end = tracked.memory_bytes
    async with booted(tracked, place / "source") as source:
        await run(
            tracked, source, f"fill {ADDRESS:#x} 0x40 0x1", f"fill {end - 32 * PAGE:#x} 0x20 0x2",
            f"fill {ADDRESS + 200 * PAGE:#x} 0x10 0x3",
        )  # fmt: skip
        frozen = await tracked.freeze(source)
    base = frozen.directory / MEM_FILE
    before = digest(base)
    mem = identity_of(base)
    async with restored(tracked, frozen, place / "fork") as fork:
        pid = fork.vmm.process.pid
        ram = await fork_of(tracked, frozen, fork)
        # Pages in the middle and at the upper edge are given back, and some are used again.
        said = await run(
            tracked, fork,
            f"give {ADDRESS + 8 * PAGE:#x} 0x30", f"give {end - 24 * PAGE:#x} 0x18",
            f"fill {ADDRESS + 10 * PAGE:#x} 4 0x5", f"fill {end - PAGE:#x} 1 0x6",
            f"sum {ADDRESS:#x} 0x40", f"sum {end - 32 * PAGE:#x} 0x20",
        )  # fmt: skip
        mapped = [
            area
            for area in areas(pid)
            if area.start < ram[0].host_start + end and area.end > ram[0].host_start
        ]
        assert len(mapped) >= 4, "Firecracker has mapped something over the mem-file"
        assert any(
            area.identity.inode == 0 and area.start < ram[0].host_start + end <= area.end for area in mapped
        )
        await fork.vmm.pause()
        whole = await save(fork, "whole", diff=False)
        runs = changed_pages(pid, ram, mem)
        first, last = (ADDRESS + 8 * PAGE) // PAGE, end // PAGE - 24
        assert {*range(first, first + 0x30), *range(last, last + 0x18)} <= pages_of(runs)
        with buffer_pages(pid, runs) as buffered:
            write_delta(place / "delta", buffered, memory_bytes=end, base=base)
    # What wasn't given back, and what is used again; the rest is zeros.
    assert [int(number, 16) for number in said[-2:]] == [(16 * 1 + 4 * 5) * 512, (8 * 2 + 6) * 512]
    compact(base, place / "delta", place / "merged")
    assert digest(place / "merged") == digest(whole)
    assert digest(base) == before
