"""Claiming one of an instance's agent ports. A VMM's socket serves one client at a time: hence a lock for
each.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import anyio
import anyio.abc

from ramet.errors import GuestError, PortsBusyError
from ramet.host.streams import connect_stream
from ramet.paths import agent_socket

_FIRST_PAUSE_S: Final = 0.002
_LONGEST_PAUSE_S: Final = 0.05


@asynccontextmanager
async def claim_port(directory: Path, count: int, wait_s: float) -> AsyncIterator[anyio.abc.ByteStream]:
    """A connection to the first free one of `agent0.sock` … `agent<count-1>.sock` in `directory`.

    While the block runs, `agent<N>.lock` beside it is held by flock(2), by whichever process that is. At its
    end, and when it is cancelled, the socket is closed first and the lock given back then. Low numbers come
    first: the pages that their buffers use in the guest are the ones that were used before.

    Raises `PortsBusyError` when none is free within `wait_s`, and `GuestError` when the directory or the
    socket isn't there or nothing listens. Nothing is held then.
    """
    try:
        directory_fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise GuestError(f"{directory} can't be opened: {error.strerror}") from error
    try:
        number, lock_fd = await _lock_any(directory, directory_fd, count, wait_s)
        try:
            stream = await _connect(directory, number)
            try:
                yield stream
            finally:
                with anyio.CancelScope(shield=True):
                    await stream.aclose()
        finally:
            os.close(lock_fd)
    finally:
        os.close(directory_fd)


async def _lock_any(directory: Path, directory_fd: int, count: int, wait_s: float) -> tuple[int, int]:
    """Tries again and again: a flock(2) that waits can't be cancelled, and it can't wait for any of several
    files.
    """
    deadline_s = time.monotonic() + wait_s
    pause_s = _FIRST_PAUSE_S
    while True:
        for number in range(count):
            if (lock_fd := _try_lock(directory_fd, f"agent{number}.lock")) is not None:
                return number, lock_fd
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise PortsBusyError(
                f"all {count} agent ports of {directory.name} stayed in use for {wait_s:g} s",
                hint="end a running exec, or wait longer",
            )
        await anyio.sleep(min(pause_s, left_s))
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def _try_lock(directory_fd: int, name: str) -> int | None:
    try:
        lock_fd = os.open(
            name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, mode=0o600, dir_fd=directory_fd
        )
    except OSError as error:
        raise GuestError(f"{name} can't be opened: {error.strerror}") from error
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock_fd)
        return None
    except BaseException:
        os.close(lock_fd)
        raise
    return lock_fd


async def _connect(directory: Path, number: int) -> anyio.abc.ByteStream:
    name = agent_socket(number)
    try:
        # A queue that is full raises BlockingIOError: under the port's lock that means a VMM that hangs.
        return connect_stream(directory, name)
    except OSError as error:
        raise GuestError(
            f"no connection to {name} of {directory.name}: {error.strerror or error}",
            hint="the VM has probably ended: see its log",
        ) from error
