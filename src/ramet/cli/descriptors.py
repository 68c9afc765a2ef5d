"""Reads and writes of descriptors that other processes share: standard streams.

Such a descriptor may be non-blocking, because another process made it so: O_NONBLOCK belongs to the open file
and not to the process (open(2)), so ramet never sets or clears it. A read or a write that isn't possible now
waits, and the count that write(2) returns decides what is left.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable

_POLL_MS = 200
_AGAIN_S = 0.001


def go_on() -> None:
    """Do nothing: the checkpoint that never raises."""


def write_all(
    descriptor: int, data: bytes | bytearray | memoryview, checkpoint: Callable[[], None] = go_on
) -> None:
    """Write every byte, as fast as the reader takes them.

    `checkpoint` is called every 0.2 s during a wait, and may raise. Raises `OSError`: `BrokenPipeError` when
    the last reader has closed the pipe, EBADF when the descriptor isn't open for writing. The number of bytes
    written is then unknown.
    """
    left = memoryview(data).cast("B")
    while left:
        try:
            left = left[os.write(descriptor, left) :]
        except BlockingIOError:
            _wait(descriptor, select.POLLOUT)
            checkpoint()


def read_some(descriptor: int, most_bytes: int, checkpoint: Callable[[], None] = go_on) -> bytes:
    """Read at least one byte, or nothing at the end of the file. Raises `OSError`."""
    while True:
        try:
            return os.read(descriptor, most_bytes)
        except BlockingIOError:
            _wait(descriptor, select.POLLIN)
            checkpoint()


def write_if_ready(descriptor: int, data: bytes) -> bool:
    """Write a few bytes, if the reader takes them now; say whether they were written. Raises nothing."""
    if not is_writable(descriptor):
        return False
    try:
        return os.write(descriptor, data) == len(data)
    except OSError:
        return False  # the reader has gone, or takes nothing now


def is_writable(descriptor: int) -> bool:
    """Say whether the reader takes something now."""
    poll = select.poll()  # epoll(7) knows no regular files
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(0))


def _wait(descriptor: int, event: int) -> None:
    poll = select.poll()
    poll.register(descriptor, event)
    if poll.poll(_POLL_MS):
        time.sleep(_AGAIN_S)  # a terminal may claim to be ready and still take nothing
