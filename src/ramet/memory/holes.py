"""Make holes of the zeros in a file that a VMM wrote out in full.

Source: fallocate(2), FALLOC_FL_PUNCH_HOLE.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ramet.system.copying import data_extents
from ramet.system.files import allocated_bytes, filesystem_errors, punch_hole
from ramet.system.zeros import ZERO_PAGE
from ramet.units import MIB, PAGE_SIZE_BYTES, round_up_to_page

_WINDOW_BYTES: Final = 2 * MIB
_ZERO_WINDOW: Final = bytes(_WINDOW_BYTES)


def punch_holes(path: Path) -> int:
    """Free the blocks of all pages of zeros in a file that has no other user. Returns its allocated bytes.

    The content stays the same, also after an error. If the filesystem has no holes, nothing changes. Raises
    `FilesystemError`.
    """
    with filesystem_errors("dig holes into", path):
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            for start, length in _zeros(descriptor):
                if not punch_hole(descriptor, start, round_up_to_page(length)):
                    break
        finally:
            os.close(descriptor)
    return allocated_bytes(path)


def _zeros(descriptor: int) -> Iterator[tuple[int, int]]:
    """Yield (offset, length) of stretches of zeros in the file's data, in whole pages, in order."""
    begun: int | None = None
    buffer = bytearray(_WINDOW_BYTES)
    view = memoryview(buffer)
    for start, end in list(data_extents(descriptor)):
        position = start
        while position < end:
            wanted = min(_WINDOW_BYTES, end - position)
            got = os.preadv(descriptor, [view[:wanted]], position)
            if got == 0:
                break
            for offset, is_zero in _pages(buffer, got):
                at = position + offset
                if is_zero and begun is None:
                    begun = at
                elif not is_zero and begun is not None:
                    yield begun, at - begun
                    begun = None
            position += got
        if begun is not None:
            yield begun, position - begun
            begun = None


def _pages(buffer: bytearray, length: int) -> Iterator[tuple[int, bool]]:
    """Yield (offset, all zeros?) for each page, or once for a whole window of zeros."""
    if length == _WINDOW_BYTES and buffer == _ZERO_WINDOW:
        yield 0, True
        return
    for offset in range(0, length, PAGE_SIZE_BYTES):
        page = buffer[offset : min(offset + PAGE_SIZE_BYTES, length)]
        yield offset, page == ZERO_PAGE[: len(page)]
