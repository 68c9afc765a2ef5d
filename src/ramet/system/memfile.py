"""Files that lie in memory and vanish with their process: where a VMM may write while its guest is paused.

A memfd is a file on the kernel's own tmpfs without a name (memfd_create(2)); another process of the same user
opens it through `/proc/<pid>/fd/<n>`. Nothing is left after its owner's end.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ramet.system.files import filesystem_errors, new_file, write_all
from ramet.system.publishing import sync
from ramet.units import MIB

_CHUNK_BYTES = 4 * MIB


@contextmanager
def memory_file(name: str) -> Iterator[int]:
    """Yield a descriptor of an empty file in memory, closed at the end.

    `name` is for people who look at /proc.

    Raises `FilesystemError` when it can't be made.
    """
    with filesystem_errors("make", f"a file in memory for {name}"):
        descriptor = os.memfd_create(f"ramet-{name}", os.MFD_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def write_out(descriptor: int, path: Path, *, mode: int) -> int:
    """Copy a file in memory to a new file `path` on a disk, synced, and return its size in bytes.

    Raises `FilesystemError`; there is no `path` then.
    """
    with filesystem_errors("write", path), new_file(path) as copy:
        size, done = os.fstat(descriptor).st_size, 0
        while done < size:
            piece = os.pread(descriptor, min(_CHUNK_BYTES, size - done), done)
            write_all(copy, piece, done)
            done += len(piece)
        os.fchmod(copy, mode)
        sync(copy)
        return size
