"""The C library, for kernel functions that Python lacks."""

from __future__ import annotations

import ctypes
import functools
import os


@functools.cache
def libc() -> ctypes.CDLL:
    """Return the C library of this process.

    A function that it lacks is an `AttributeError` when it is asked for.
    """
    return ctypes.CDLL(None, use_errno=True)


def last_error() -> OSError:
    """Return the error of the call that has just failed in this thread."""
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
