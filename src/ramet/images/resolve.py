"""From the name that a user gives to the image that a VM boots."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Final

from ramet.errors import NotFoundError
from ramet.images import builtin
from ramet.images.image import Image
from ramet.images.kernel import find_kernel

IMAGE_NAMES: Final = (builtin.NAME,)
"""Every name that `resolve_image` knows."""


def resolve_image(ref: str, agent: Path) -> Image:
    """The image called `ref`, made first if need be, with `agent` as its init.

    Raises `NotFoundError` for a name that isn't known, else what `find_kernel` and `build_builtin` raise.
    """
    if ref not in IMAGE_NAMES:
        near = difflib.get_close_matches(ref, IMAGE_NAMES, n=1)
        raise NotFoundError(
            f"there is no image {ref!r}",
            hint=f"did you mean {near[0]}?" if near else f"there is: {', '.join(IMAGE_NAMES)}",
        )
    return builtin.build_builtin(find_kernel(), agent, builtin.find_busybox())
