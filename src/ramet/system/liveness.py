"""Tell whether a process is alive or dead, or that this is unknown here.

A process is named by its pid *and* its start time, so that a pid used again is never mistaken for it
(proc(5), field 22 of `/proc/PID/stat`), by the PID namespace of that pid, and by the boot of the machine. A
pidfd (pidfd_open(2)) is readable once its process has ended, also before it is reaped.

Not seeing a process doesn't prove that it is dead. Another PID namespace (a container) has other processes
under the same pids; another machine has another boot id; `/proc` may show another namespace's processes, or
hide other users'. The answer is `UNKNOWN` then, and nothing may be destroyed. Linux only.
"""

from __future__ import annotations

import enum
import os
import select

from ramet.errors import UnavailableError, UnseenError, VmmError
from ramet.model.record import ProcessRef
from ramet.system.forked import in_children
from ramet.system.process_ref import (
    boot_id,
    cannot_look,
    is_here,
    is_of_past_boot,
    is_start_of,
    proc_name_of,
    proc_view,
    start_ticks,
)
from ramet.system.process_search import find_in_proc, hides_nothing

_adopted: set[ProcessRef] = set()
"""Children of this process whose exit status is ramet's to collect."""


class Liveness(enum.Enum):
    """The answer to whether a process runs. Only `DEAD` allows anything to be destroyed."""

    ALIVE = "alive"
    DEAD = "dead"
    UNKNOWN = "unknown"
    """The process belongs to another machine or another PID namespace, or `/proc` hides it."""


def liveness(process: ProcessRef) -> Liveness:
    """Tell whether `process` still runs, as far as that is visible from here. A zombie doesn't run.

    Raises `UnavailableError` when this process has no descriptor left to look with.
    """
    try:
        pidfd = open_pidfd(process)
    except UnseenError:
        return Liveness.ALIVE if _is_shown(process) else Liveness.UNKNOWN
    if pidfd is None:
        return Liveness.DEAD
    os.close(pidfd)
    return Liveness.ALIVE


def is_dead(process: ProcessRef) -> bool:
    """Tell whether `process` certainly ended: its leftovers may be undone or removed.

    Raises as `liveness`.
    """
    return liveness(process) is Liveness.DEAD


def is_alive(process: ProcessRef) -> bool:
    """Tell whether `process` certainly runs. Raises as `liveness`.

    This is for display: that a process isn't known to run is no reason to destroy anything, see `is_dead`.
    """
    return liveness(process) is Liveness.ALIVE


def _is_shown(process: ProcessRef) -> bool:
    """Tell whether `/proc` shows the process, which can't be reached: a namespace above this has it."""
    if process.boot_id != boot_id() or process.pid_namespace in (0, proc_view().namespace):
        return False
    try:
        return find_in_proc(process) is not None
    except PermissionError:
        return False


def open_pidfd(process: ProcessRef) -> int | None:
    """Open a pidfd of `process` for the caller to close; None when it is dead; a dead child is reaped then.

    Raises `UnseenError` when that can't be told from here, `UnavailableError` for want of descriptors:
    neither must ever pass for "dead".
    """
    if process.boot_id != boot_id():
        if is_of_past_boot(process):
            return None
        raise unseen(process)
    view = proc_view()
    if process.pid_namespace in (0, view.namespace):
        return _pin(process, process.pid)
    # It may be in a namespace below this one, which has its own pids for all processes there.
    try:
        name = find_in_proc(process)
    except PermissionError as error:
        raise unseen(process) from error
    if name is not None and view.shows_own:
        return _pin(process, int(name))
    if name is None and view.shows_all and hides_nothing():
        return None
    raise unseen(process)


def _pin(process: ProcessRef, pid: int) -> int | None:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    except OSError as error:
        raise cannot_look(process, error) from error
    try:
        # Only after the pidfd pins the pid does comparing start times prove anything.
        try:
            is_it = is_start_of(start_ticks(proc_name_of(pid, pidfd)), process)
        except (ProcessLookupError, PermissionError) as error:
            if not has_ended(pidfd):
                raise unseen(process) from error  # hidepid (proc(5)), or it is above what /proc shows
            return None
        except OSError as error:
            raise cannot_look(process, error) from error
        if not is_it:
            return None
        if has_ended(pidfd):
            reap(process, pidfd)
            return None
        kept, pidfd = pidfd, -1
        return kept
    finally:
        if pidfd != -1:
            os.close(pidfd)


def local_pid(process: ProcessRef) -> int:
    """Return the number by which this process, and `/proc`, know `process`.

    It is the process's own pid, unless the process is in a namespace below this one. Raises `UnseenError`
    when the process can't be seen from here, `VmmError` when it is gone. Code that reads `/proc/PID` of a
    recorded process asks here first: the same number may be another process's.
    """
    if is_here(process):
        return process.pid
    pidfd = open_pidfd(process)
    if pidfd is None:
        raise VmmError(f"process {process.pid} has ended")
    os.close(pidfd)
    try:
        name = find_in_proc(process)
    except PermissionError:
        name = None
    if name is None or not proc_view().shows_own:
        raise unseen(process)
    return int(name)


def why_unseen(process: ProcessRef) -> str | None:
    """Tell why it can't be told from here whether `process` lives, in words that follow its name.

    None when it can be told.
    """
    return why_out_of_reach(process) if liveness(process) is Liveness.UNKNOWN else None


def why_out_of_reach(process: ProcessRef) -> str:
    """Tell why `open_pidfd` can't open the process, in the same words."""
    if process.boot_id != boot_id():
        return f"it was started on another machine (boot {process.boot_id[:8]})"
    if process.pid_namespace not in (0, proc_view().namespace):
        return f"it was started in another PID namespace (pid:[{process.pid_namespace}])"
    return "this /proc doesn't show it"


def unseen(process: ProcessRef) -> UnseenError:
    """Make the error for a caller that has to see `process`."""
    return UnseenError(
        f"process {process.pid} can't be seen from here: {why_out_of_reach(process)}",
        hint=where_to_look(process),
    )


def where_to_look(process: ProcessRef) -> str:
    """Tell where `process` can be seen, in words for a hint."""
    if process.boot_id != boot_id():
        return "run ramet on the machine where it was started"
    if process.pid_namespace not in (0, proc_view().namespace):
        return "run ramet in the container where it was started, or on the host"
    return "mount a /proc of this PID namespace, without hidepid"


def require_own_proc() -> None:
    """Raise `UnavailableError` unless `/proc` shows this process's own PID namespace.

    Its guests' memory is read through `/proc/PID`.
    """
    if not proc_view().shows_own:
        raise UnavailableError(
            "/proc shows another PID namespace's processes",
            hint="mount one of this namespace: `mount -t proc proc /proc`, `unshare --mount-proc`",
        )


def has_ended(pidfd: int) -> bool:
    """Tell whether the process behind a pidfd no longer runs."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def adopt(child: ProcessRef) -> None:
    """Mark a child of this process whose exit status nobody else wants: the finder of its end collects it."""
    _adopted.add(child)


def reap(process: ProcessRef, pidfd: int) -> None:
    """Collect the exit status of an adopted child that has ended, so that it doesn't stay a zombie.

    Another child of this process, such as a `ramet` that its user started, is left alone: its status is for
    the code that waits for it, and would be 0 to a subprocess.Popen that finds it collected.
    """
    if process not in _adopted:
        return
    try:
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        pass
    _adopted.discard(process)


in_children(_adopted.clear)  # a child that was forked has none of its parent's
