"""A fork against what its source has written: shared, it costs a link; copied, all of it."""

from __future__ import annotations

import os
from typing import Final

import ramet
from benchmarks import guests
from benchmarks.figures import Key
from benchmarks.latency import READY
from benchmarks.run import Benchmark, Plot, Run
from ramet.units import GIB, MIB

DISK: Final = "disk per fork"
MEMORY: Final = "memory per fork"
_RAM: Final = {"firecracker": "5G", "qemu": "6G"}
_SPACE_TIMES: Final = 3
"""The template, a copy of it, and another one's worth to spare."""


async def measure(run: Run, driver: str) -> None:
    """Of each source forks that share, and a copy or two between them."""
    if run.quick and driver == "qemu":
        run.ledger.skip(driver, "booting a guest takes too long for a quick run")
        return
    sizes = (0, 64 * MIB) if run.quick else (0, 256 * MIB, GIB, 4 * GIB)
    for size in sizes:
        if _SPACE_TIMES * size > guests.free_bytes(run.scratch):
            run.ledger.skip(f"{driver}, {size >> 20} MiB touched", "too little space on the disk")
            continue
        vm = await guests.boot(run.host, driver, "512M" if run.quick else _RAM[driver], touched_bytes=size)
        base = await vm.template()
        os.sync()
        copies = 1 if size == GIB else 2
        for number in range(5 * copies):
            if number % 5 == 1:
                await _one(run, driver, base, size, "copying", share_memory=False)
            await _one(run, driver, base, size, "ramet")
        await base.remove(force=True)
        for what in (READY, DISK, MEMORY):
            run.ledger.compare(
                f"{driver}: copying over sharing, {size >> 20} MiB touched, {what}",
                Key(what, f"{driver}, copying", size),
                Key(what, f"{driver}, ramet", size),
                paired=False,
            )


async def _one(
    run: Run, driver: str, base: ramet.VM, size: int, who: str, *, share_memory: bool = True
) -> None:
    who = f"{driver}, {who}"
    async with base.fork(1, share_memory=share_memory) as (fork,):
        run.ledger.put(READY, who, fork.receipt.timings_ms.total, x=size)
        disk = guests.disk_bytes(fork.directory)
        run.ledger.put(DISK, who, disk, "bytes", x=size)
        # A copy's mem-file is in the page cache for it alone; a shared one's is there once, for all forks.
        pages = 0 if share_memory else guests.cached_bytes(fork.directory / "mem")
        private = guests.memory_of(fork.receipt.pid)["Private_Dirty"]
        run.ledger.put(MEMORY, who, private + pages, "bytes", x=size)
    if not share_memory:
        os.sync()  # what the copy has left to be written isn't the next fork's to wait for


BENCHMARK: Final = Benchmark(
    name="touched",
    title="Touched memory",
    about="A fork of guests by the memory that they have written (a file in a tmpfs under Linux), "
    "shared and copied (`share_memory=False`: the behaviour before mem-files were linked). Disk "
    "is the space of the fork's directory that no other link shares. Memory is what its VMM alone "
    "holds and, for a copy, also its mem-file in the page cache.",
    measure=measure,
    budget_s=60,
    axis="bytes touched",
    plots=(Plot(READY, "One fork by touched memory, call to ready", log_y=True),),
)
