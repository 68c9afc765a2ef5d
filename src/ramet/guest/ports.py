"""Claims of an instance's agent ports.

A VMM's socket serves one client at a time, so each port has a lock.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import anyio
import anyio.abc

from ramet.concurrency import pauses_s
from ramet.errors import GuestError, PortsBusyError
from ramet.paths import agent_socket
from ramet.system.streams import connect_stream

_FIRST_PAUSE_S: Final = 0.002
_LONGEST_PAUSE_S: Final = 0.05


VSOCK_COMMANDS: Final = 14
"""Clients that may have commands in a guest at once over vsock.

The agent takes 16 connections (`PORTS_OPEN_MAX` in link/port.h), of which two are kept for ramet itself.
"""


def command_ports(agent_ports: int) -> int:
    """Return how many of a machine's agent ports, the first ones, clients with commands may claim.

    A client has its port as long as its command runs. The last port is for ramet's own requests: identity,
    clock, power-off. An instance of an older ramet, with fewer ports, keeps the last port back too.
    """
    return VSOCK_COMMANDS if agent_ports == 0 else max(1, agent_ports - 1)


@asynccontextmanager
async def claim_port(directory: Path, count: int, wait_s: float) -> AsyncIterator[anyio.abc.ByteStream]:
    """Connect to the first free socket of `agent0.sock` … `agent<count-1>.sock` in `directory`.

    At the block's end, and when it is cancelled, the socket is closed first and the claim released then.
    Errors as `claim_number` and `connect_port`. Nothing is held then.
    """
    async with claim_number(directory, count, wait_s) as number, connect_port(directory, number) as stream:
        yield stream


@asynccontextmanager
async def connect_port(directory: Path, number: int) -> AsyncIterator[anyio.abc.ByteStream]:
    """Connect to `agent<number>.sock` in `directory`, whose number the caller has claimed.

    Raises `GuestError` when the socket isn't there or nothing listens.
    """
    stream = await _connect(directory, number)
    try:
        yield stream
    finally:
        with anyio.CancelScope(shield=True):
            await stream.aclose()


@asynccontextmanager
async def claim_number(directory: Path, count: int, wait_s: float) -> AsyncIterator[int]:
    """Claim the first free number below `count` for the caller alone.

    While the block runs, `agent<N>.lock` in `directory` is held by flock(2), which excludes other processes
    too. Low numbers come first, because their buffers in the guest use the pages that were used before.
    Raises `PortsBusyError` when no number is free within `wait_s`, `GuestError` when the directory isn't
    there.
    """
    try:
        directory_fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise GuestError(f"{directory} can't be opened: {error.strerror}") from error
    try:
        number, lock_fd = await _lock_any(directory, directory_fd, count, wait_s)
        try:
            yield number
        finally:
            os.close(lock_fd)
    finally:
        os.close(directory_fd)


async def _lock_any(directory: Path, directory_fd: int, count: int, wait_s: float) -> tuple[int, int]:
    """Try repeatedly: a waiting flock(2) can't be cancelled, and can't wait for several files."""
    pauses = pauses_s(
        _FIRST_PAUSE_S,
        _LONGEST_PAUSE_S,
        within_s=wait_s,
        late=lambda: PortsBusyError(
            f"all {count} agent ports of {directory.name} stayed in use for {wait_s:g} s",
            hint="end a running exec, or wait longer",
        ),
    )
    while True:
        for number in range(count):
            if (lock_fd := _try_lock(directory_fd, f"agent{number}.lock")) is not None:
                return number, lock_fd
        await anyio.sleep(next(pauses))


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
