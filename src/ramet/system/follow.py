"""The lines that are appended to a log, as they come: `logs -f`.

Driven by inotify(7), one instance per follower, bound here with ctypes in two calls: the events are never
parsed, they only mean "look again", so a library for them would be larger than the code it replaces. Without
inotify (its limits are per user and low; other systems lack it) the file is looked at every `POLL_S`.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path

import anyio
from anyio.lowlevel import checkpoint

from ramet.system import bounded_log
from ramet.system.libc import last_error, libc
from ramet.units import KIB, MIB

CHUNK_BYTES = 64 * KIB
POLL_S = 0.25

# <sys/inotify.h>
_IN_NONBLOCK_CLOEXEC = os.O_NONBLOCK | os.O_CLOEXEC
_IN_MODIFY, _IN_ATTRIB = 0x002, 0x004  # a lost name is a change of the link count: IN_ATTRIB


async def follow(
    log: Path,
    *,
    until: Callable[[], Awaitable[object]],
    history_bytes: int = MIB,
    on_poll: Callable[[str], None] | None = None,
) -> AsyncGenerator[bytes, None]:
    """Yield the last `history_bytes` of a log, then appended bytes, in chunks of at most `CHUNK_BYTES`.

    Ends, after a last look, when `until()` returns (the VMM has ended), or when the file has lost its name.
    `until` is called repeatedly, and cancelled in between: `event.wait` will do. A caller that leaves the
    loop early wraps this in `contextlib.aclosing`, which closes its descriptors at that moment.

    A missing log is waited for. A log that gets shorter was trimmed and is read from its beginning; a
    follower that is overtaken by a trim misses the lines that were cut. `on_poll` is called with the reason
    if there is no inotify. Raises `OSError`, and what `until()` raises.
    """
    descriptor = await _open(log, until)
    if descriptor is None:
        return
    notify = -1
    try:
        notify, why = _watch(descriptor)
        if notify < 0 and on_poll is not None:
            on_poll(why)
        size = os.fstat(descriptor).st_size
        offset = max(0, size - history_bytes)
        earlier = bounded_log.last_bytes(bounded_log.previous(log), history_bytes - (size - offset))
        for start in range(0, len(earlier), CHUNK_BYTES):
            yield earlier[start : start + CHUNK_BYTES]
        ended = False
        while True:
            status = os.fstat(descriptor)
            if status.st_size < offset:
                offset = 0
            while chunk := os.pread(descriptor, CHUNK_BYTES, offset):
                offset += len(chunk)
                yield chunk
                await checkpoint()  # a guest that never pauses must not keep the loop from everything else
            if ended or status.st_nlink == 0:
                return
            ended = await _changed(notify, until)
    finally:
        if notify >= 0:
            os.close(notify)
        os.close(descriptor)


async def _open(log: Path, until: Callable[[], Awaitable[object]]) -> int | None:
    """Return a descriptor of the log, or None when it never came."""
    ended = False
    while True:
        try:
            return bounded_log.open_regular(log, os.O_RDONLY)
        except FileNotFoundError:
            if ended:
                return None
            ended = await _changed(-1, until)


def _watch(descriptor: int) -> tuple[int, str]:
    """Return an inotify descriptor that becomes readable when the open file changes, or -1 and the reason."""
    try:
        init, add = libc().inotify_init1, libc().inotify_add_watch
    except AttributeError:
        return -1, "this system has no inotify"
    notify: int = init(_IN_NONBLOCK_CLOEXEC)
    # Through the descriptor: the name may belong to another file by now.
    if notify >= 0 and add(notify, f"/proc/self/fd/{descriptor}".encode(), _IN_MODIFY | _IN_ATTRIB) >= 0:
        return notify, ""
    why = last_error().strerror
    if notify >= 0:
        os.close(notify)
    return -1, f"inotify: {why}"


async def _changed(notify: int, until: Callable[[], Awaitable[object]]) -> bool:
    """Wait for a change of the file, or (without inotify) a while. True when `until` returned instead."""
    ended = False
    failure: Exception | None = None

    async def wait_until() -> None:
        nonlocal ended, failure
        try:
            await until()
            ended = True
        except Exception as error:
            failure = error  # itself, not in the group that a task group would make of it
        group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(wait_until)
        if notify < 0:
            await anyio.sleep(POLL_S)
        else:
            await anyio.wait_readable(notify)
            os.read(notify, 4 * KIB)  # remaining events wake us once more, which is harmless
        group.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return ended
