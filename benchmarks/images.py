"""Container images: pulled, merged, written; and the disk that a hundred of them on one base take."""

from __future__ import annotations

import json
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any, Final

import anyio

from benchmarks import guests
from benchmarks.figures import Key
from benchmarks.layers import LayerFile, make_layer, registry
from benchmarks.run import Benchmark, Run
from ramet.images.library.library import Library
from ramet.images.library.obtain import read_file
from ramet.images.library.records import Layer, Material
from ramet.memory.integrity import digest
from ramet.model.container import ImageConfig
from ramet.system import threads
from ramet.units import MIB

SPEED: Final = "speed"
RSS: Final = "largest resident set of the process"
DISK: Final = "disk"
ALL: Final = "all images"
DISTINCT: Final = "their distinct layers, unpacked archives"
BUILD: Final = "build"
OVER_LAYERS: Final = "images on one base over their distinct layers"
COUNT: Final = 100


async def measure(run: Run, driver: str) -> None:
    """The steps, from an empty cache each time; then many images, one after another."""
    directory = run.scratch / "images"
    directory.mkdir()
    try:
        size = run.pick(256, 24) * MIB
        common = await threads.run(lambda: make_layer(directory, "common", size, compressed=True))
        await _steps(run, directory, common)
        await _many(run, directory, common)
    finally:
        await threads.run(shutil.rmtree, directory)


async def _steps(run: Run, directory: Path, layer: LayerFile) -> None:
    with registry([layer]) as address:
        for number in range(run.pick(3, 1)):
            work = directory / f"work{number}"
            work.mkdir()
            for words in (("pull", address), ("build", str(layer.path))):
                for step, figures, rss in await _child(*words, str(work)):
                    run.ledger.put(SPEED, step, figures["bytes"] / 1e6 / figures["s"], "MB/s")
                    run.ledger.put(RSS, words[0], rss, "bytes")
            await threads.run(shutil.rmtree, work)


async def _child(*words: str) -> list[tuple[str, dict[str, float], float]]:
    command = [sys.executable, "-m", "benchmarks.image_steps", *words]
    with anyio.fail_after(guests.LONG_S):
        done = await anyio.run_process(command, cwd=Path(__file__).parent.parent, stderr=None)
    said: dict[str, Any] = json.loads(done.stdout)
    return [(step, figures, said["rss_bytes"]) for step, figures in said["steps"].items()]


async def _many(run: Run, directory: Path, common: LayerFile) -> None:
    """Images with the common layer and a small one of their own each."""
    library = Library(directory / "library", part_digest=digest)
    distinct = common.plain_bytes
    for number in range(run.pick(COUNT, 5)):
        name = f"own{number}"
        size = common.plain_bytes // 50
        own = await threads.run(partial(make_layer, directory, name, size, compressed=False))
        distinct += own.plain_bytes
        clock = guests.Clock()
        await library.add(_material([common, own]), name=f"app:{number}", is_local=True)
        run.ledger.put(BUILD, "first image" if number == 0 else "an image on a known base", clock.ms)
        own.path.unlink()
    used = await threads.run(guests.disk_bytes, directory / "library")
    run.ledger.put(DISK, ALL, used, "bytes", x=run.pick(COUNT, 5))
    run.ledger.put(DISK, DISTINCT, distinct, "bytes", x=run.pick(COUNT, 5))
    run.ledger.compare(
        OVER_LAYERS,
        Key(DISK, ALL, run.pick(COUNT, 5)),
        Key(DISK, DISTINCT, run.pick(COUNT, 5)),
    )


def _material(layers: list[LayerFile]) -> Material:
    return Material(
        ImageConfig(),
        [
            Layer(layer.path.name, layer.diff_id, partial(read_file, layer.path), blob=layer.digest)
            for layer in layers
        ],
        None,
        "a benchmark",
    )


BENCHMARK: Final = Benchmark(
    name="images",
    title="Container images",
    about="One layer of 256 MiB (24 in a quick run) with files of all sizes: pulled from a registry on "
    "loopback (speed of compressed bytes), merged (unpacked, hashed, spooled), and written as an image; a "
    "process pulls, another merges and writes. Then a hundred images (five in a quick run) that have this "
    "layer in common and a layer of a fiftieth of its size each, built one after another.",
    measure=measure,
    budget_s=45,
    drivers=(),
    axis="images",
)
