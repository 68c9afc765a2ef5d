"""All benchmarks, in the order in which they run and are shown."""

from __future__ import annotations

from typing import Final

from benchmarks import (
    branches,
    compressed,
    depth,
    fanout,
    footprint,
    images,
    instead,
    latency,
    page_cache,
    ram_size,
    runs,
    startup,
    thousand,
    touched,
)

ALL: Final = tuple(
    module.BENCHMARK
    for module in (
        latency,
        instead,
        fanout,
        ram_size,
        touched,
        compressed,
        depth,
        branches,
        footprint,
        page_cache,
        startup,
        images,
        runs,
        thousand,
    )
)
BY_NAME: Final = {benchmark.name: benchmark for benchmark in ALL}
