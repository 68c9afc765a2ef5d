"""What a living fork costs: memory and disk of its VMM's, and memory and processor time of ramet's own."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Final

import anyio

import ramet
from benchmarks import guests
from benchmarks.figures import Key
from benchmarks.run import Benchmark, Plot, Run
from ramet.units import MIB

READY: Final = "PSS when ready"
WORKED: Final = "PSS after a workload"
DISK: Final = "disk per fork"
OWN_MEMORY: Final = "ramet's own memory per instance"
OWN_CPU: Final = "ramet's own CPU per instance, idle"
_WORKLOAD: Final = {
    "qemu": ("sh", "-c", f"head -c {8 * MIB} /dev/urandom > /tmp/work && sha256sum /tmp/work"),
    "firecracker": ("fill", hex(guests.DATA_ADDRESS), hex(8 * MIB // guests.PAGE), "0x77"),
}
_QUIET_S: Final = 0.5
_CHILD_LIMIT_S: Final = 120.0


async def measure(run: Run, driver: str) -> None:
    """As many forks, then as many of the floor's, at once; and a process of its own that holds some."""
    base = await run.template(driver)
    count = run.pick(100 if driver == "firecracker" else 10, 4)
    for _ in run.rounds(2, 1, least=1):
        await _forks(run, driver, base, count)
        done = run.floor(driver, base).round(count, guests.concurrency())
        for pss in done["pss_bytes"]:
            run.ledger.put(READY, f"{driver}, floor", pss, "bytes")
    for _ in run.rounds(2, 1, least=1):
        await _own(run, driver, base, run.pick(100 if driver == "firecracker" else 10, 5))
    run.ledger.compare(
        f"{driver}: ramet over floor, {READY}",
        Key(READY, f"{driver}, ramet"),
        Key(READY, f"{driver}, floor"),
    )


async def _forks(run: Run, driver: str, base: ramet.VM, count: int) -> None:
    who = f"{driver}, ramet"
    async with base.fork(count) as forks:
        for fork in forks:
            use = guests.memory_of(fork.receipt.pid)
            run.ledger.put(READY, who, use["Pss"], "bytes")
            run.ledger.put("private when ready", who, use["Private_Dirty"], "bytes")
            run.ledger.put(DISK, who, guests.disk_bytes(fork.directory), "bytes")
        results = await forks.exec(*_WORKLOAD[driver], timeout=guests.LONG_S)
        for result in results:
            if isinstance(result, Exception):
                raise result
        for fork in forks:
            run.ledger.put(WORKED, who, guests.memory_of(fork.receipt.pid)["Pss"], "bytes")


async def _own(run: Run, driver: str, base: ramet.VM, count: int) -> None:
    """In a process of its own, so that nothing else is counted."""
    words = [
        sys.executable,
        "-m",
        "benchmarks.footprint",
        str(run.host.home),
        base.id,
        str(count),
        str(run.pick(4, 1)),
    ]
    root = Path(__file__).parent.parent
    with anyio.fail_after(_CHILD_LIMIT_S):
        done = await anyio.run_process(words, cwd=root, stderr=None)
    said = json.loads(done.stdout)
    who = f"{driver}, ramet"
    run.ledger.put(OWN_MEMORY, who, said["memory_bytes"], "bytes")
    run.ledger.put(OWN_CPU, who, said["cpu_ms_per_s"], "ms/s")


async def hold(home: str, reference: str, count: int, idle_s: float) -> None:
    """That process. A few forks first: what a process needs once isn't an instance's."""
    async with ramet.Host(home) as host:
        base = await host.get(reference)
        async with base.fork(min(count, 10)) as forks:
            await forks.exec("true")
        before = guests.memory_of("self")["Private_Dirty"]
        async with base.fork(count) as forks:
            await forks.exec("true")
            memory = guests.memory_of("self")["Private_Dirty"] - before
            await anyio.sleep(_QUIET_S)
            cpu_s, started = time.process_time(), time.monotonic()
            await anyio.sleep(idle_s)
            used_s = (time.process_time() - cpu_s) / (time.monotonic() - started)
    print(json.dumps({"memory_bytes": memory / count, "cpu_ms_per_s": 1000 * used_s / count}))


BENCHMARK: Final = Benchmark(
    name="footprint",
    title="What a living fork costs",
    about="PSS and disk of forks of 512 MiB, all alive at once, when they are ready and after each has "
    "worked (8 MiB written; under Linux drawn from its generator and hashed). The floor's have "
    "only answered. ramet's own: the additional private memory of a process with a Host and N "
    "instances, per instance (100 on Firecracker, 10 on QEMU, with a connection to each guest's "
    "agent), and its processor time per instance while nothing happens.",
    measure=measure,
    budget_s=20,
    plots=(Plot(READY, "PSS of a fork that is ready"),),
)

if __name__ == "__main__":
    anyio.run(hold, sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
