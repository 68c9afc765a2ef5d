"""Owners: processes that make something in a home that has to be removed with them.

A process that is killed can't clean up. So before it writes its name anywhere it starts a small process, one
per home, that waits for its end by pidfd and then cleans up (`owner_watcher`, `engine.owner_ended`). `owner`
is the only way to that name. A process that is stopped, traced or replaced by another program (execve(2))
hasn't ended.

A pipe's end wouldn't do: children that were forked hold it, too.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import anyio

from ramet.errors import RametError
from ramet.model.record import ProcessRef
from ramet.programs import environment
from ramet.system import (
    forked,
    liveness,
    own_programs,
    owner_watcher,
    process_limit,
    process_ref,
    processes,
    spawn,
)
from ramet.system.liveness import has_ended

CLEANER: Final = "ramet.engine.owner_ended"
_AGAIN_S: Final = (1.0, 60.0)
"""After a watcher couldn't be started, or ended soon, it is tried again later and later."""
_SOON_S: Final = 1.0
_MANY: Final = 3
KEPT_OUT: Final = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
"""A closed terminal, a Ctrl-C, a supervisor that stops everything: the owner decides about these signals."""
_log: Final = logging.getLogger("ramet")


class _Watched:
    """A home in which this process makes things."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.hosts = 0
        self.watcher: ProcessRef | None = None
        self.pidfd = -1
        self.started_s = 0.0
        self.failures = 0
        self.why = ""
        self.has_warned = False
        self.is_needed = False
        self.waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    def is_watched(self) -> bool:
        return self.pidfd != -1 and not has_ended(self.pidfd)

    def ensure(self, *, warn: bool) -> None:
        """Start a watcher unless there is one, or there was none to be had a moment ago."""
        now_s = time.monotonic()
        if not self.is_watched() and now_s >= self.started_s + self.pause_s():
            self._replace(now_s)
        if warn and self.why and not self.has_warned:
            self.has_warned = True
            _log.warning(
                "should this process be killed, its guests stay until another ramet opens %s: %s",
                self.home,
                self.why,
            )

    def _replace(self, now_s: float) -> None:
        if self.watcher is not None:
            self.failures = self.failures + 1 if now_s < self.started_s + self.pause_s() + _SOON_S else 0
            self.forget()
        self.started_s = now_s
        try:
            self.watcher, self.pidfd = _start(self.home)
        except (OSError, RametError) as error:
            self.failures += 1
            reached = process_limit.reached_by(error, starting=True)
            self.why = f"no process can be started that would end them: {reached or error}"
            return
        self.why = "who would end them is always ended itself" if self.failures >= _MANY else ""
        for loop, started in self.waiters:
            with suppress(RuntimeError):  # that loop has ended
                loop.call_soon_threadsafe(started.set)

    def pause_s(self) -> float:
        """Return the seconds after the last start in which there is no other."""
        shortest_s, longest_s = _AGAIN_S
        return min(shortest_s * 2**self.failures, longest_s) if self.failures else 0.0

    def forget(self) -> None:
        if self.pidfd != -1:
            os.close(self.pidfd)
        self.watcher, self.pidfd = None, -1


_lock = threading.Lock()
_homes: dict[Path, _Watched] = {}
_is_cleaner = False


def owner(home: Path) -> ProcessRef:
    """Return this process as owner of what it makes in `home`, with a watcher that cleans up after its death.

    If no watcher can be started, that is logged once, and cleaning up is left to the next ramet process.
    """
    watch(home, warn=True)
    return process_ref.this_process()


def watch(home: Path, *, warn: bool = False) -> None:
    """Have a watcher, if there is one to be had, before something is removed in several steps."""
    if not _is_cleaner:
        with _lock:
            _homes.setdefault(home, _Watched(home)).ensure(warn=warn)


def watch_nothing() -> None:
    """Have this process, which cleans up after others, start no watcher.

    A cleaner that always fails would have itself started again and again.
    """
    global _is_cleaner
    _is_cleaner = True


@contextmanager
def attended(home: Path) -> Iterator[None]:
    """Inside, there is a Host that leaves `home` clean: with the last of them the watcher goes, too."""
    with _lock:
        watched = _homes.setdefault(home, _Watched(home))
        watched.hosts += 1
    try:
        yield
    finally:
        with _lock:
            watched.hosts -= 1
            if watched.hosts == 0 and not watched.is_needed and _homes.get(home) is watched:
                del _homes[home]
                _end(watched)


def leave_to_watcher(home: Path) -> None:
    """Keep the watcher, which retries at this process's end what couldn't be removed."""
    with _lock:
        if home in _homes:
            _homes[home].is_needed = True


def _end(watched: _Watched) -> None:
    """End a watcher that has nothing to do."""
    if watched.watcher is None:
        return
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(watched.pidfd, signal.SIGKILL)
    with suppress(ChildProcessError):
        os.waitid(os.P_PIDFD, watched.pidfd, os.WEXITED)
    watched.forget()


async def keep_watched(home: Path) -> None:
    """Start another watcher whenever one has been ended, until cancelled. For a task of a Host's."""
    started = asyncio.Event()
    waiter = (asyncio.get_running_loop(), started)
    with _lock:
        watched = _homes.setdefault(home, _Watched(home))
        watched.waiters.append(waiter)
        if watched.watcher is not None:
            started.set()
    try:
        while True:
            await started.wait()
            started.clear()
            with _lock:
                watcher = watched.watcher
            if watcher is None:
                continue
            await processes.wait_ended(watcher)
            while not started.is_set():
                with _lock:
                    watched.ensure(warn=True)
                if not started.is_set():
                    await anyio.sleep(watched.pause_s() or _SOON_S)
    finally:
        with _lock:
            watched.waiters.remove(waiter)


def _start(home: Path) -> tuple[ProcessRef, int]:
    """Start a watcher of this process, and return it with a pidfd.

    On `OSError`, `UnavailableError` none runs.
    """
    place = home.stat()
    opened = os.pidfd_open(os.getpid())
    try:
        # Not in the place of a standard stream that this process has closed: the watcher gets others there.
        ourselves = fcntl.fcntl(opened, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(opened)
    # Blocked signals are inherited; a handler would come too late.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, KEPT_OUT)
    try:
        child = subprocess.Popen(
            [
                *own_programs.alone(owner_watcher),
                *(str(ourselves), os.fspath(home), str(place.st_dev), str(place.st_ino)),
                *own_programs.with_ramet(CLEANER),
                os.fspath(home),
            ],
            cwd="/",
            # It is no VMM, and mustn't be taken for one.
            env={name: value for name, value in environment().items() if name != spawn.OWNER_TAG},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(ourselves,),
            start_new_session=True,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(ourselves)
    # It is waited for by pidfd; Popen must not complain that it outlives its object.
    child.returncode = 0
    watcher = process_ref.reference(child.pid)
    liveness.adopt(watcher)
    return watcher, os.pidfd_open(child.pid)


def _after_fork() -> None:
    """Forget the watchers in a forked child: it is another process, without a watcher."""
    global _lock
    _lock = threading.Lock()
    for watched in _homes.values():
        watched.forget()
    _homes.clear()


forked.in_children(_after_fork)
