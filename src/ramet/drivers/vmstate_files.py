"""Files of ours that a VMM is to write to: named through `/proc`, so that they need no name of their own."""

from __future__ import annotations

import os

from ramet.errors import VmmError


def path_of(descriptor: int) -> str:
    """A path by which another process of this user opens what this one has open.

    proc(5), `/proc/PID/fd`: it leads to the file itself, also to a memfd.
    """
    return f"/proc/{os.getpid()}/fd/{descriptor}"


def require_empty(descriptor: int) -> None:
    """Raise `VmmError` when something is in the file: it would be overwritten."""
    if os.fstat(descriptor).st_size:
        raise VmmError("vmstate is only ever written to an empty file")
