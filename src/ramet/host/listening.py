"""Connecting to a socket that another process is about to make: by events, not by trying again and again.

inotify(7) on the socket's directory tells when its name appears; a write to any file there (the log line that
follows the listen(2)) tells once more; a pidfd tells when the process has ended instead. One inotify instance
for the few milliseconds of one start: they are few per user.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
from pathlib import Path

import anyio

from ramet.errors import VmmError, VmmTimeoutError
from ramet.host import processes
from ramet.model.record import ProcessRef

# <sys/inotify.h>
_IN_MODIFY, _IN_CREATE = 0x002, 0x100
_IN_NONBLOCK_CLOEXEC = os.O_NONBLOCK | os.O_CLOEXEC
_EVENTS_BYTES = 4096
_WITHOUT_INOTIFY_S = 0.002


async def connect_when_listening(
    directory: Path, name: str, process: ProcessRef, *, timeout_s: float
) -> socket.socket:
    """A non-blocking connection to the UNIX socket `name` in `directory`, as soon as `process` listens there.

    Raises `VmmError` when the process ends first, `VmmTimeoutError` when `timeout_s` passes.
    """
    loop = asyncio.get_running_loop()
    news = asyncio.Event()
    notify = _watch(directory)
    pidfd = processes.open_pidfd(process)
    watched = [descriptor for descriptor in (notify, pidfd) if descriptor is not None]
    for descriptor in watched:
        loop.add_reader(descriptor, news.set)
    try:
        with anyio.fail_after(timeout_s):
            while True:
                try:
                    return processes.connect(directory, name)
                except (FileNotFoundError, ConnectionRefusedError, BlockingIOError):
                    pass  # not there yet; between bind(2) and listen(2); its queue is full
                if not processes.is_alive(process):
                    raise VmmError(f"process {process.pid} ended before it listened on {name}")
                with anyio.move_on_after(None if notify is not None else _WITHOUT_INOTIFY_S):
                    await news.wait()
                news.clear()
                if notify is not None:
                    _drain(notify)
    except TimeoutError:
        raise VmmTimeoutError(
            f"process {process.pid} didn't listen on {name} within {timeout_s:g} s"
        ) from None
    finally:
        for descriptor in watched:
            loop.remove_reader(descriptor)
            os.close(descriptor)


def _watch(directory: Path) -> int | None:
    """An inotify descriptor for the directory, or None where there can be none."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        init, add = libc.inotify_init1, libc.inotify_add_watch
    except AttributeError:
        return None
    notify: int = init(_IN_NONBLOCK_CLOEXEC)
    if notify < 0:
        return None
    if add(notify, os.fsencode(directory), _IN_CREATE | _IN_MODIFY) < 0:
        os.close(notify)
        return None
    return notify


def _drain(notify: int) -> None:
    try:
        os.read(notify, _EVENTS_BYTES)  # what is left wakes us once more, which is harmless
    except BlockingIOError:
        pass  # it was the process's end
