"""A program that builds an image and says which layers it opened, slowly if it is told to.

python -m tests.unit.images.library.building DIRECTORY [PAUSE]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from pathlib import Path

import anyio

from ramet.images.erofs import blob
from ramet.images.library.records import Layer
from tests.unit.images.library.libraries import SHARED_FROM, layer_of, library_in, material_of

LAYERS = [layer_of("base", 90_000), layer_of("own", 20_000)]
DIGEST = "sha256:" + "7" * 64


def main(directory: Path, pause_s: float) -> None:
    blob.SHARED_FROM_BYTES = SHARED_FROM  # type: ignore[misc]

    def slow(layer: Layer) -> Layer:
        def chunks() -> Iterable[bytes]:
            print("opens", layer.name, flush=True)
            time.sleep(pause_s)
            yield from layer.open()

        return layer._replace(open=chunks)

    material = material_of(LAYERS, digest=DIGEST)
    layers = [slow(layer) for layer in material.layers]
    add = library_in(directory).add
    image = anyio.run(lambda: add(material._replace(layers=layers), name="app", is_local=True))
    print("made", image.digest, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 0)
