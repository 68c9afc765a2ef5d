"""The image that a VM boots, by the name that a user gives."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ramet.errors import NotFoundError
from ramet.images import builtin, probe
from ramet.images.image import Image
from ramet.images.kernel import find_kernel
from ramet.images.linux import find_busybox

IMAGE_NAMES: Final = (builtin.NAME, probe.NAME)
"""The names of the images."""
ALIASES: Final = {"bare": probe.NAME}
"""Other names that `resolve_image` knows, and their images."""


def resolve_image(ref: str, find_agent: Callable[[], Path], find_probe: Callable[[], Path]) -> Image:
    """Return the image whose name or alias is `ref`, made first if necessary.

    Of the two programs only the one that the image needs is looked for: the agent, a Linux guest's init, or
    the probe. Raises `NotFoundError` for an unknown name, else what looking for the ingredients and making
    the image raise.
    """
    name = ALIASES.get(ref, ref)
    if name not in IMAGE_NAMES:
        near = difflib.get_close_matches(ref, [*IMAGE_NAMES, *ALIASES], n=1)
        raise NotFoundError(
            f"there is no image {ref!r}",
            hint=f"did you mean {near[0]}?" if near else f"there is: {', '.join(IMAGE_NAMES)}",
        )
    if name == probe.NAME:
        return probe.build_probe(find_probe())
    return builtin.build_builtin(find_kernel(), find_agent(), find_busybox())
