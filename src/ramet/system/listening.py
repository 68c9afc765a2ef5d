"""Connections to a socket that another process is about to make: by events, not by polling.

inotify(7) on the socket's directory tells when its name appears; a write to any file there (the log line that
follows the listen(2)) tells once more; a pidfd tells when the process has ended instead.

One inotify instance serves everything in an event loop and stays open: they are few per user, and closing one
takes 10 ms, because the kernel waits until nobody looks at it any more.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Final

import anyio

from ramet.errors import VmmError, VmmTimeoutError
from ramet.model.record import ProcessRef
from ramet.system import forked, liveness, sockets
from ramet.system.libc import libc

# <sys/inotify.h>
_IN_MODIFY, _IN_CREATE = 0x002, 0x100
_IN_MOVED_FROM, _IN_MOVED_TO, _IN_DELETE = 0x040, 0x080, 0x200
_IN_MASK_ADD = 0x20000000
_IN_NONBLOCK_CLOEXEC: Final = os.O_NONBLOCK | os.O_CLOEXEC
_EVENT: Final = struct.Struct("iIII")  # watch, mask, cookie, length of the name behind it
_EVENTS_BYTES: Final = 65536
_WITHOUT_INOTIFY_S: Final = 0.002


async def connect_when_listening(
    directory: Path, name: str, process: ProcessRef, *, timeout_s: float
) -> socket.socket:
    """Connect to the UNIX socket `name` in `directory`, without blocking, as soon as `process` listens there.

    Raises `VmmError` when the process ends first, `VmmTimeoutError` when `timeout_s` passes.
    """
    if (connection := _try(directory, name)) is not None:
        return connection  # most are quicker than their starter, and there is nothing to wait for
    news = asyncio.Event()
    with _Notifier.of_this_loop().watching(directory, news) as watched, _ending(process, news):
        try:
            with anyio.fail_after(timeout_s):
                while (connection := _try(directory, name)) is None:
                    if liveness.is_dead(process):
                        raise VmmError(f"process {process.pid} ended before it listened on {name}")
                    with anyio.move_on_after(None if watched else _WITHOUT_INOTIFY_S):
                        await news.wait()
                    news.clear()
                return connection
        except TimeoutError:
            raise VmmTimeoutError(
                f"process {process.pid} didn't listen on {name} within {timeout_s:g} s"
            ) from None


def _try(directory: Path, name: str) -> socket.socket | None:
    """Try to connect; None if the socket isn't there or doesn't listen yet, or has a full queue."""
    try:
        return sockets.connect(directory, name)
    except (FileNotFoundError, ConnectionRefusedError, BlockingIOError):
        return None


@contextmanager
def names_watched(directory: Path, news: asyncio.Event) -> Iterator[bool]:
    """Set `news` whenever a name appears in the directory or goes. False: that can't be had."""
    mask = _IN_CREATE | _IN_MOVED_FROM | _IN_MOVED_TO | _IN_DELETE
    with _Notifier.of_this_loop().watching(directory, news, mask) as watched:
        yield watched


@contextmanager
def _ending(process: ProcessRef, news: asyncio.Event) -> Iterator[None]:
    """Set `news` when the process ends."""
    pidfd = liveness.open_pidfd(process)
    if pidfd is None:
        yield
        return
    loop = asyncio.get_running_loop()
    loop.add_reader(pidfd, news.set)
    try:
        yield
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)


class _Notifier:
    """The inotify instance of one event loop."""

    _of_loops: ClassVar[weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Notifier]] = (
        weakref.WeakKeyDictionary()
    )

    def __init__(self) -> None:
        self._waiting: dict[int, set[asyncio.Event]] = {}
        self._descriptor = -1
        try:
            self._descriptor = libc().inotify_init1(_IN_NONBLOCK_CLOEXEC)
        except AttributeError:
            return  # this system has none
        if self._descriptor >= 0:
            weakref.finalize(self, os.close, self._descriptor)

    @classmethod
    def forget(cls) -> None:
        """Forget the notifiers in a forked child: an event that it read would be its parent's."""
        cls._of_loops.clear()

    @classmethod
    def of_this_loop(cls) -> _Notifier:
        """Return the running event loop's notifier, made when it is first needed."""
        loop = asyncio.get_running_loop()
        notifier = cls._of_loops.get(loop)
        if notifier is None:
            notifier = cls._of_loops[loop] = cls()
        return notifier

    @contextmanager
    def watching(
        self, directory: Path, news: asyncio.Event, mask: int = _IN_CREATE | _IN_MODIFY
    ) -> Iterator[bool]:
        """Set `news` whenever what `mask` says happens in the directory. False: that can't be had."""
        watch = -1
        if self._descriptor >= 0:
            path = os.fsencode(directory)
            watch = libc().inotify_add_watch(self._descriptor, path, mask | _IN_MASK_ADD)
        if watch < 0:
            yield False
            return
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.add_reader(self._descriptor, self._read)
        # One directory has one watch, however many wait for something in it.
        waiting = self._waiting.setdefault(watch, set())
        waiting.add(news)
        try:
            yield True
        finally:
            waiting.discard(news)
            if not waiting:
                del self._waiting[watch]
                libc().inotify_rm_watch(self._descriptor, watch)
            if not self._waiting:
                loop.remove_reader(self._descriptor)

    def _read(self) -> None:
        try:
            events = os.read(self._descriptor, _EVENTS_BYTES)
        except BlockingIOError:
            return
        position = 0
        while position < len(events):
            watch, _mask, _cookie, length = _EVENT.unpack_from(events, position)
            position += _EVENT.size + length
            # -1: some were lost, so everybody looks for himself.
            for waiting in self._waiting.values() if watch < 0 else [self._waiting.get(watch, set())]:
                for news in waiting:
                    news.set()


forked.in_children(_Notifier.forget)
