"""Pages of zeros in data that is written to a file: they become holes there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ramet.units import PAGE_SIZE_BYTES

ZERO_PAGE: Final = bytes(PAGE_SIZE_BYTES)


def not_zeros(data: memoryview, offset: int) -> Iterator[tuple[int, int]]:
    """Yield (first, last + 1) of stretches without pages of zeros in `data`.

    `data` lies at `offset` of its file.
    """
    begun: int | None = None
    position = 0
    while position < len(data):
        # Pages of the file, not of the data: only those can become holes.
        following = min(len(data), position + PAGE_SIZE_BYTES - (offset + position) % PAGE_SIZE_BYTES)
        if ZERO_PAGE.startswith(data[position:following]):
            if begun is not None:
                yield begun, position
                begun = None
        elif begun is None:
            begun = position
        position = following
    if begun is not None:
        yield begun, position
