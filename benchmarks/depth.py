"""A fork of a fork of a fork…: each has changed a page or two of what it began with."""

from __future__ import annotations

from typing import Final

import ramet
from benchmarks import guests
from benchmarks.figures import Key
from benchmarks.latency import READY
from benchmarks.run import Benchmark, Plot, Run

_FULL: Final = (1, 10, 25, 50)
_QUICK: Final = (1, 3)


async def measure(run: Run, driver: str) -> None:
    """Go down once, keeping a snapshot at some depths; then a fork of each of those in turn."""
    depths = _QUICK if run.quick else _FULL
    kept: dict[int, ramet.Snapshot] = {}
    (vm,) = await (await run.template(driver)).fork(1)
    for depth in range(1, depths[-1] + 1):
        await _change(vm, driver, depth)
        if depth in depths:
            kept[depth] = await vm.snapshot(f"{driver}-depth-{depth}")
        (child,) = await vm.fork(1)
        await vm.remove(force=True)
        vm = child
    await vm.remove(force=True)
    for number in run.rounds(40 if driver == "firecracker" else 20, 2, least=5):
        for depth, snapshot in list(kept.items())[:: -1 if number % 2 else 1]:
            async with snapshot.fork(1) as (fork,):
                run.ledger.put(READY, f"{driver}, ramet", fork.receipt.timings_ms.total, x=depth)
                delta = fork.receipt.memory.delta_bytes
                run.ledger.put("delta", f"{driver}, ramet", delta, "bytes", x=depth)
    for depth in depths[1:]:
        run.ledger.compare(
            f"{driver}: depth {depth} over depth 1",
            Key(READY, f"{driver}, ramet", depth),
            Key(READY, f"{driver}, ramet", 1),
        )


async def _change(vm: ramet.VM, driver: str, depth: int) -> None:
    if driver == "qemu":
        await vm.exec("sh", "-c", f"echo {depth} > /run/depth", check=True)
    else:
        await vm.exec("poke", hex(guests.DATA_ADDRESS + guests.PAGE * depth), hex(depth), check=True)


BENCHMARK: Final = Benchmark(
    name="depth",
    title="Depth",
    about="A fork of a snapshot at the end of a line of running forks, each of which changed a page and "
    "was forked in turn. `delta` is what such a fork holds of its ancestors' changes. They add up "
    "where each one changes another page, and an emulated Linux changes some by itself.",
    measure=measure,
    budget_s=25,
    axis="depth",
    plots=(Plot(READY, "One fork by depth, call to ready"),),
)
