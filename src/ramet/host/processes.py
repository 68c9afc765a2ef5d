"""Processes that outlive the one that started them: spawn, recognise, wait for and end a VMM.

A process is named by its pid *and* its start time, so that a pid used again is never mistaken for it
(proc(5), field 22 of `/proc/PID/stat`); the boot id makes the pair unique across restarts of the machine.
Liveness comes from pidfd_open(2): a pidfd is readable once its process has ended, also when nobody has reaped
it yet. Linux only.
"""

from __future__ import annotations

import asyncio
import functools
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import anyio

from ramet.errors import UnavailableError, VmmError
from ramet.model.record import ProcessRef

_STARTED_FIELD = 22
_USER_FIELD = 14
_START_CODE_FIELD = 26
MARK = "RAMET_VMM"
"""The environment variable that says to which directory a process belongs."""
_MARK_PREFIX = f"{MARK}=".encode()
_YAMA_SCOPE = Path("/proc/sys/kernel/yama/ptrace_scope")
LAST_BREATH_S = 2.0
"""How long one waits for the end of a VMM that has closed its sockets: it does so a moment before."""
_adopted: set[ProcessRef] = set()
"""Children of this process whose exit status is ramet's to collect."""


@functools.cache
def boot_id() -> str:
    """This boot of this machine, from random(4)'s `/proc/sys/kernel/random/boot_id`."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def reference(pid: int) -> ProcessRef:
    """The process that has `pid` now. Raises `ProcessLookupError` when there is none."""
    return ProcessRef(pid, int(_stat(pid)[_STARTED_FIELD - 3]), boot_id())


def cpu_seconds(process: ProcessRef) -> float:
    """The CPU time that `process` has used, user and system. Raises `VmmError` when it is gone."""
    try:
        fields = _stat(process.pid)
    except ProcessLookupError as error:
        raise VmmError(f"process {process.pid} has ended") from error
    return (int(fields[_USER_FIELD - 3]) + int(fields[_USER_FIELD - 2])) / os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[bytes]:
    """The fields of proc(5)'s `/proc/PID/stat`, from the third on."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise ProcessLookupError(f"no process {pid}") from error
    # The second field is the program's name in parentheses, which may itself hold spaces and parentheses.
    return stat[stat.rindex(b")") + 2 :].split()


@functools.cache
def this_process() -> ProcessRef:
    """The running ramet process, as owner of what it makes."""
    return reference(os.getpid())


def open_pidfd(process: ProcessRef) -> int | None:
    """A pidfd of `process` that the caller closes, or None when it is gone; a child of ours is reaped then.

    Raises `UnavailableError` when it can't be told, for want of descriptors: that must never pass for "gone".
    """
    if process.boot_id != boot_id():
        return None
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    except OSError as error:
        raise UnavailableError(
            f"process {process.pid} can't be looked at: {error.strerror}",
            hint="raise the limit on open files",
        ) from error
    try:
        # Only after the pidfd pins the pid does comparing start times prove anything.
        if reference(process.pid).started == process.started:
            if not _has_ended(pidfd):
                return_fd, pidfd = pidfd, -1
                return return_fd
            _reap(process, pidfd)
    except ProcessLookupError:
        pass
    finally:
        if pidfd != -1:
            os.close(pidfd)
    return None


def is_alive(process: ProcessRef) -> bool:
    """Whether `process` still runs. A zombie doesn't."""
    pidfd = open_pidfd(process)
    if pidfd is None:
        return False
    os.close(pidfd)
    return True


def _has_ended(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


async def wait_ended(process: ProcessRef, *, timeout_s: float | None = None) -> bool:
    """Wait until `process` has ended. False when it still runs after `timeout_s`."""
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
            _reap(process, pidfd)
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)
    return ended.is_set()


async def kill(process: ProcessRef, *, timeout_s: float = 10.0) -> None:
    """SIGKILL `process` and wait until it is gone. Nothing happens when it is gone already.

    Raises `UnavailableError` when it survives `timeout_s` (a kernel that can't let go of it) or may not be
    signalled.
    """
    pidfd = open_pidfd(process)
    if pidfd is None:
        return
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
    if not await wait_ended(process, timeout_s=timeout_s):
        raise UnavailableError(f"process {process.pid} is still there {timeout_s:.0f} s after SIGKILL")


def adopt(child: ProcessRef) -> None:
    """It is a child of this process whose exit status nobody else wants: `wait_ended` collects it."""
    _adopted.add(child)


def _reap(process: ProcessRef, pidfd: int) -> None:
    """Collect the exit status of a child of ours that has ended, so that it doesn't stay a zombie.

    Nothing is done about another child of this process, a `ramet` that its user started, say: its status is
    for whoever waits for that, and would be 0 to a subprocess.Popen that finds it collected.
    """
    if process not in _adopted:
        return
    try:
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        pass
    _adopted.discard(process)


def spawn(
    argv: Sequence[str],
    *,
    directory: Path,
    log: Path,
    fds: Sequence[int] = (),
    largest_file_bytes: int | None = None,
    mark: Path | None = None,
) -> ProcessRef:
    """Start `argv` in `directory`, in a session of its own, its output appended to `log`, `fds` inherited.

    Its environment says that it belongs to the directory `mark`, by default the one that it is started in:
    see `spawned_in`. It is another one when `directory` is going to be renamed to that.
    `largest_file_bytes` is the kernel's limit on any file that it writes, see `limit_files`. The process
    outlives this one. Raises `UnavailableError` when the program can't be executed; nothing runs then.
    """
    log_fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    # A full log is to be an error to its writer and not its death. Python ignores SIGXFSZ, which
    # restore_signals=False lets the child inherit; a VMM with a handler of its own (Firecracker's ends it)
    # doesn't get to run it, because a mask is inherited, too.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGXFSZ})
    try:
        child = subprocess.Popen(
            [*_launcher(), *argv],
            cwd=directory,
            env={**os.environb, MARK.encode(): os.fsencode(mark or directory)},
            stdin=subprocess.DEVNULL,
            stdout=log_fd,
            stderr=log_fd,
            pass_fds=fds,
            start_new_session=True,
            restore_signals=False,
        )
    except OSError as error:
        raise UnavailableError(
            f"{argv[0]} can't be executed: {error.strerror}",
            hint="`ramet doctor` says what this machine lacks",
        ) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(log_fd)
    # It is waited for by pidfd; Popen must not complain that it outlives its object.
    child.returncode = 0
    process = reference(child.pid)
    adopt(process)
    if largest_file_bytes is not None:
        _limit(child.pid, largest_file_bytes)  # nobody has waited for it: the pid is its own
    return process


def _environment(pid: int) -> bytes:
    """The environment of a process; empty when it has none.

    In the middle of execve(2), which Popen doesn't wait for the end of, a process has none for a moment, and
    no code either; that is waited for, at most 0.1 s. Raises `OSError` when it is gone, a kernel thread, or
    somebody else's.
    """
    place = Path(f"/proc/{pid}")
    for _ in range(100):
        complete = int(_stat(pid)[_START_CODE_FIELD - 3]) != 0
        if (environment := (place / "environ").read_bytes()) or complete:
            break
        (place / "exe").readlink()
        time.sleep(0.001)
    return environment


def limit_files(process: ProcessRef, largest_file_bytes: int | None) -> None:
    """Bound every file that `process` writes: beyond it a write fails with EFBIG (RLIMIT_FSIZE,
    getrlimit(2)). None: no bound.

    Only the soft limit, which can be raised again for a file that has to be larger. Nothing happens when the
    process has ended: whoever talks to it will find out. Raises `UnavailableError` when it belongs to another
    user.
    """
    pidfd = open_pidfd(process)  # while it is held, the pid is nobody else's
    if pidfd is None:
        return
    try:
        _limit(process.pid, largest_file_bytes)
    finally:
        os.close(pidfd)


def _limit(pid: int, largest_file_bytes: int | None) -> None:
    soft = resource.RLIM_INFINITY if largest_file_bytes is None else largest_file_bytes
    try:
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        if hard != resource.RLIM_INFINITY and (soft == resource.RLIM_INFINITY or soft > hard):
            soft = hard
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))
    except ProcessLookupError:
        pass
    except PermissionError as error:
        raise UnavailableError(
            f"process {pid} belongs to another user and can't be limited", hint="run ramet as that user"
        ) from error


def limit_of_files(process: ProcessRef) -> int | None:
    """The largest file that `process` may write, see `limit_files`; None when there is no bound, or no such
    process.
    """
    try:
        soft, _ = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    except ProcessLookupError:
        return None
    return None if soft == resource.RLIM_INFINITY else soft


def _launcher() -> list[str]:
    """What has to run before a VMM so that a later ramet process, which isn't its parent, may read its
    memory.

    Where Yama restricts ptrace to descendants (`kernel.yama.ptrace_scope` 1) the VMM-to-be says of itself
    that others of its user may (PR_SET_PTRACER, prctl(2)), which lasts across execve. Elsewhere nothing is
    needed, and nothing is paid.
    """
    try:
        restricted = _YAMA_SCOPE.read_text().strip() == "1"
    except OSError:
        return []
    if not restricted or os.geteuid() == 0:
        return []
    code = (
        "import ctypes, os, sys; ctypes.CDLL(None).prctl(0x59616d61, ctypes.c_ulong(-1), 0, 0, 0);"
        "os.execvp(sys.argv[1], sys.argv[1:])"
    )
    return [sys.executable, "-I", "-S", "-c", code]


def spawned_below(*directories: Path) -> dict[Path, list[ProcessRef]]:
    """The living processes that `spawn` started for the directories in `directories`, by those: found by
    looking at every process there is, so for many it is to be asked once.

    They are known by the mark in their environment (proc(5), `/proc/PID/environ`): a shell that somebody has
    opened there is none of ours.
    """
    found: dict[Path, list[ProcessRef]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            marks = [
                one for one in _environment(int(entry.name)).split(b"\0") if one.startswith(_MARK_PREFIX)
            ]
            if marks:
                working = Path(os.fsdecode(marks[0][len(_MARK_PREFIX) :]))
                if working.parent in directories:
                    found.setdefault(working, []).append(reference(int(entry.name)))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # gone, or somebody else's
    return found


def spawned_in(directory: Path) -> list[ProcessRef]:
    """The living processes that `spawn` started for `directory`, also by another ramet, also unrecorded."""
    return spawned_below(directory.parent).get(directory, [])


def listen(directory_fd: int, name: str) -> socket.socket:
    """A listening UNIX socket `name` in the directory, mode 0600 by the caller's umask, an older one
    replaced.

    Bound through `/proc/self/fd`, so that the 108 bytes of unix(7)'s `sun_path` hold whatever the directory
    is called. A VMM that inherits it can be connected to from this moment on: nobody has to wait for a socket
    to appear.
    """
    try:
        os.unlink(name, dir_fd=directory_fd)
    except FileNotFoundError:
        pass
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(f"/proc/self/fd/{directory_fd}/{name}")
        listener.listen(4)
    except OSError:
        listener.close()
        raise
    return listener


def connect(directory: Path, name: str) -> socket.socket:
    """A non-blocking connection to the UNIX socket `name` in `directory`, however long that path is.

    Raises `BlockingIOError` when the listener's queue is full, as a hung VMM leaves it; another `OSError`
    when nobody listens.
    """
    directory_fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.setblocking(False)
    try:
        connection.connect(f"/proc/self/fd/{directory_fd}/{name}")
    except OSError:
        connection.close()
        raise
    finally:
        os.close(directory_fd)
    return connection


def raise_open_files_limit() -> None:
    """Let this process open as many files as its hard limit allows: an instance takes a handful
    (getrlimit(2)).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
