"""An image that a source has: all that is needed to build it, and its name there."""

from __future__ import annotations

from typing import NamedTuple

from ramet.images.library.records import Material


class Found(NamedTuple):
    """An image to build. `name` is what its source calls it, empty if that gives no name."""

    material: Material
    name: str
