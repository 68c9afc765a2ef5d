"""Wait for and end processes that outlive their starter, and measure their CPU time.

`spawn` starts and finds them; `process_ref` recognises them, and `liveness` tells whether they run. Linux
only. Sources: pidfd_open(2), pidfd_send_signal(2), proc(5) (`/proc/PID/stat`).
"""

from __future__ import annotations

import asyncio
import os
import signal

import anyio

from ramet.errors import UnavailableError, VmmError
from ramet.model.record import ProcessRef
from ramet.system.liveness import local_pid, open_pidfd, reap
from ramet.system.process_ref import stat_fields

_USER_FIELD = 14
LAST_BREATH_S = 2.0
"""Longest wait for the end of a VMM that has closed its sockets, which it does a moment before."""


def cpu_seconds(process: ProcessRef) -> float:
    """Return the CPU time that `process` has used, user and system.

    Raises `VmmError` when it is gone, `UnseenError` when it can't be seen from here.
    """
    try:
        fields = stat_fields(str(local_pid(process)))
    except ProcessLookupError as error:
        raise VmmError(f"process {process.pid} has ended") from error
    return (int(fields[_USER_FIELD - 3]) + int(fields[_USER_FIELD - 2])) / os.sysconf("SC_CLK_TCK")


async def wait_ended(process: ProcessRef, *, timeout_s: float | None = None) -> bool:
    """Wait until `process` has ended. False when it still runs after `timeout_s`.

    Raises `UnseenError` when its end can't be seen from here.
    """
    pidfd = open_pidfd(process)
    if pidfd is None:
        return True
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(pidfd, ended.set)
    try:
        with anyio.move_on_after(timeout_s):
            await ended.wait()
        if ended.is_set():
            reap(process, pidfd)
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)
    return ended.is_set()


async def kill(process: ProcessRef, *, timeout_s: float = 10.0) -> None:
    """Kill `process` with SIGKILL and wait until it is gone. Nothing happens when it is gone already.

    Raises `UnavailableError` when it survives `timeout_s` (the kernel can't end it), may not be signalled or,
    as `UnseenError`, can't be seen from here.
    """
    if strike(process) and not await wait_ended(process, timeout_s=timeout_s):
        raise UnavailableError(f"process {process.pid} is still there {timeout_s:.0f} s after SIGKILL")


def strike(process: ProcessRef) -> bool:
    """SIGKILL `process` and don't wait. False when it is gone already. Raises as `kill`."""
    pidfd = open_pidfd(process)
    if pidfd is None:
        return False
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        pass
    except PermissionError as error:
        raise UnavailableError(
            f"process {process.pid} belongs to another user and can't be ended", hint="run ramet as that user"
        ) from error
    finally:
        os.close(pidfd)
    return True
