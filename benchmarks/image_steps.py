"""Steps from a registry to an image, each in a process of its own, so that its memory is only its own.

    python -m benchmarks.image_steps pull ADDRESS DIRECTORY
    python -m benchmarks.image_steps build LAYER DIRECTORY

Prints seconds and bytes per step, and the largest resident set, as JSON.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio

from ramet.images.erofs.image import write_image
from ramet.images.layers.contents import LayerContents
from ramet.images.layers.merge import Merge
from ramet.images.layers.read import add_layer
from ramet.images.library.obtain import read_file

Steps = dict[str, dict[str, float]]


@contextmanager
def timed(steps: Steps, name: str) -> Iterator[dict[str, float]]:
    started, cpu_s = time.monotonic(), time.process_time()
    steps[name] = {}
    yield steps[name]
    steps[name]["s"] = time.monotonic() - started
    steps[name]["cpu_s"] = time.process_time() - cpu_s


async def pull(steps: Steps, address: str, directory: Path) -> None:
    """An image's documents and layers into a cache that is empty."""
    from ramet.oci.blobs import BlobCache
    from ramet.oci.pull import pull
    from ramet.oci.reference import Reference

    with timed(steps, "pull") as step:
        pulled = await pull(Reference.parse(f"{address}/bench/image"), BlobCache(directory))
        step["bytes"] = pulled.fetched_bytes


def build(steps: Steps, layer: Path, directory: Path) -> None:
    """A layer into a tree and its spool, then the image with all data in its own file."""
    files = [os.open(directory / name, os.O_RDWR | os.O_CREAT) for name in ("pages", "small", "image")]
    merge, contents = Merge(), LayerContents(0, pages=files[0], small=files[1])
    with timed(steps, "merge") as step:
        add_layer(merge, contents, read_file(layer), name="layer")
        step["bytes"] = sum(os.fstat(file).st_size for file in files[:2])
    with timed(steps, "write") as step:
        step["bytes"] = write_image(merge.root, {0: contents}, files[2]).size_bytes


def main(words: list[str]) -> None:
    """The command."""
    steps: Steps = {}
    if words[0] == "pull":
        anyio.run(pull, steps, words[1], Path(words[2]))
    else:
        build(steps, Path(words[1]), Path(words[2]))
    rss_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"steps": steps, "rss_bytes": rss_bytes}))


if __name__ == "__main__":
    main(sys.argv[1:])
