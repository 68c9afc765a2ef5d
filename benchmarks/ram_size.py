"""A fork against the size of its guest's RAM: there should be nothing to see."""

from __future__ import annotations

from random import Random
from typing import Final

from benchmarks.figures import Key
from benchmarks.latency import READY
from benchmarks.run import Benchmark, Plot, Run
from ramet.units import parse_size

SIZES: Final = ("256M", "1G", "4G", "8G")
_QUICK: Final = ("256M", "512M")


async def measure(run: Run, driver: str) -> None:
    """A fork of each size, and the floor's of the same template, in another order each time: how long a load
    waits for the kernel depends on how large the VM was that has just ended.
    """
    sizes = _QUICK if run.quick else SIZES
    if run.quick and driver == "qemu":
        run.ledger.skip(driver, "booting guests takes too long for a quick run")
        return
    bases = {size: await run.template(driver, size) for size in sizes}
    orders = Random(0)
    forks = [(who, size) for who in ("ramet", "floor") for size in sizes]
    for _ in run.rounds(40 if driver == "firecracker" else 15, 2, least=5):
        orders.shuffle(forks)
        for who, size in forks:
            if who == "ramet":
                async with bases[size].fork(1) as (fork,):
                    ready_ms = fork.receipt.timings_ms.total
            else:
                ready_ms = run.floor(driver, bases[size]).once()
            run.ledger.put(READY, f"{driver}, {who}", ready_ms, x=parse_size(size))
    smallest = parse_size(sizes[0])
    for size in sizes[1:]:
        for who in ("ramet", "floor"):
            run.ledger.compare(
                f"{driver}, {who}: {size} over {sizes[0]}",
                Key(READY, f"{driver}, {who}", parse_size(size)),
                Key(READY, f"{driver}, {who}", smallest),
            )


BENCHMARK: Final = Benchmark(
    name="ram_size",
    title="RAM",
    about="A fork of guests that booted and touched nothing else, by the size of their RAM.",
    measure=measure,
    budget_s=20,
    axis="bytes of RAM",
    plots=(Plot(READY, "One fork by size of RAM, call to ready", log_x=True),),
)
