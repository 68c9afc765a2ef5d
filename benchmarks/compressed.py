"""Memory compressed and decompressed, beside zstd's own program on the same file."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import ramet
from benchmarks import guests
from benchmarks.figures import Key
from benchmarks.run import Benchmark, Plot, Run
from ramet.system.files import allocated_bytes
from ramet.units import GIB, MIB

COMPRESS: Final = "compressing"
DECOMPRESS: Final = "decompressing"
PART: Final = "compressed size over raw"
_SPACE_TIMES: Final = 4
"""The mem-file, what the program makes of it and back, and as much to spare."""
_RAM_TIMES: Final = 1.5


async def measure(run: Run, driver: str) -> None:
    """Of each source ramet and the program, in turn."""
    sizes = (64 * MIB,) if run.quick else (256 * MIB, GIB, 4 * GIB)
    if run.quick and driver == "qemu":
        run.ledger.skip(driver, "booting a guest takes too long for a quick run")
        return
    zstd = shutil.which("zstd")
    if zstd is None:
        run.ledger.skip(f"{driver}, zstd", "the program isn't installed (package zstd)")
    for size in sizes:
        if _SPACE_TIMES * size > guests.free_bytes(run.scratch):
            run.ledger.skip(f"{driver}, {size >> 20} MiB", "too little space on the disk")
            continue
        vm = await guests.boot(run.host, driver, int(_RAM_TIMES * size) + 256 * MIB)
        await guests.work(vm, driver, size)
        base = await vm.template()
        for _ in run.rounds(3 if size < 4 * GIB else 2, 1, least=1):
            await _round(run, driver, base, size, zstd)
        await base.remove(force=True)
        for what in (COMPRESS, DECOMPRESS) if zstd else ():
            run.ledger.compare(
                f"{driver}: ramet over zstd -T0, {size >> 20} MiB, {what}",
                Key(what, f"{driver}, ramet", size),
                Key(what, f"{driver}, zstd -T0", size),
                paired=False,
            )


async def _round(run: Run, driver: str, base: ramet.VM, size: int, zstd: str | None) -> None:
    mem = base.directory / "mem"
    raw_bytes = allocated_bytes(mem)
    if zstd is not None:
        packed, back = run.scratch / "mem.zst", run.scratch / "mem.back"
        steps: tuple[tuple[str, list[str | Path], Path], ...] = (
            (COMPRESS, [zstd, "-q", "-f", "-T0", "-3", mem, "-o", packed], packed),
            (DECOMPRESS, [zstd, "-q", "-f", "-d", "--sparse", packed, "-o", back], back),
        )
        for what, words, made in steps:
            took_ms = timed(lambda words=words, made=made: _run(words, made))  # type: ignore[misc]
            run.ledger.put(what, f"{driver}, zstd -T0", took_ms, x=size)
        run.ledger.put(PART, f"{driver}, zstd -T0", packed.stat().st_size / raw_bytes, "", x=size)
        packed.unlink()
        back.unlink()
    done = await base.compress()
    run.ledger.put(COMPRESS, f"{driver}, ramet", done.wall_ms, x=size)
    run.ledger.put(PART, f"{driver}, ramet", (done.compressed_bytes or 0) / done.raw_bytes, "", x=size)
    async with base.fork(1) as (fork,):
        run.ledger.put(DECOMPRESS, f"{driver}, ramet", fork.receipt.timings_ms.decompress, x=size)
    await base.decompress()


def timed(call: Callable[[], None]) -> float:
    """How long it took, in ms."""
    started = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - started)


def _run(words: list[str | Path], made: Path) -> None:
    """And synced, as ramet's are."""
    subprocess.run(words, check=True, stdin=subprocess.DEVNULL, timeout=guests.LONG_S)
    descriptor = os.open(made, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


BENCHMARK: Final = Benchmark(
    name="compressed",
    title="Compressed memory",
    about="The memory of a template compressed at level 3 and decompressed by its first fork, beside "
    "`zstd -T0 -3` and `zstd -d --sparse` on the same file, synced. ramet's times include reading "
    "back every frame and comparing the content with its digest, both ways. Under Linux the guest "
    "has written random bytes, text and programs in equal parts; the bare-metal guest one "
    "pattern.",
    measure=measure,
    budget_s=45,
    axis="bytes written by the guest",
    plots=(Plot(COMPRESS, "Compressing, by memory written", log_x=True, log_y=True),),
)
