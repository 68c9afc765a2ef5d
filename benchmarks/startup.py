"""Whole commands: how long `ramet` takes to begin."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

import anyio

from benchmarks import guests
from benchmarks.figures import Key
from benchmarks.run import Benchmark, Plot, Run

WALL: Final = "whole command"
PYTHON: Final = "python -c pass"


async def measure(run: Run, driver: str) -> None:
    """In turn; the home has a template and no more."""
    await run.template("firecracker" if run.quick else "qemu")
    program = str(Path(sys.executable).with_name("ramet"))
    commands = {
        PYTHON: [sys.executable, "-c", "pass"],
        "ramet --help": [program, "--help"],
        "ramet ps": [program, "ps"],
    }
    home = {"RAMET_HOME": str(run.host.home)}
    for number in range(run.pick(21, 4)):
        for name, words in commands.items():
            clock = guests.Clock()
            with anyio.fail_after(guests.LONG_S):
                await anyio.run_process(words, env={**os.environ, **home})
            if number:  # the first of each reads its files
                run.ledger.put(WALL, name, clock.ms)
    for name in ("ramet --help", "ramet ps"):
        run.ledger.compare(f"{name} over {PYTHON}", Key(WALL, name), Key(WALL, PYTHON))


BENCHMARK: Final = Benchmark(
    name="startup",
    title="Start-up",
    about="Whole commands, from spawning the process to its end, against a Python that does nothing.",
    measure=measure,
    budget_s=12,
    drivers=(),
    plots=(Plot(WALL, "Whole commands"),),
)
