"""Tell whether a process is alive or dead, or that it can't be told from here.

A process is named by its pid *and* its start time, so that a pid used again is never mistaken for it
(proc(5), field 22 of `/proc/PID/stat`), by the PID namespace of that pid, and by the boot of the machine. A
pidfd (pidfd_open(2)) is readable once its process has ended, also when nobody has reaped it yet.

Not seeing a process doesn't prove that it is dead. Another PID namespace (a container) has other processes
under the same pids; another machine has another boot id; `/proc` may show another namespace's processes, or
hide those of other users. The answer is `UNKNOWN` then, and nothing may be destroyed. Linux only.
"""

from __future__ import annotations

import enum
import functools
import os
import re
import select
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from ramet.errors import UnavailableError, UnseenError, VmmError
from ramet.host.forked import in_children
from ramet.model.record import ProcessRef

_STARTED_FIELD: Final = 22
_INITIAL_PID_NAMESPACE: Final = 0xEFFFFFFC  # <linux/proc_ns.h>: PROC_PID_INIT_INO
_INITIAL_TIME_NAMESPACE: Final = 0xEFFFFFFA  # PROC_TIME_INIT_INO
_SECOND_NS: Final = 1_000_000_000

_past_boots: set[str] = set()
"""Boot ids of this machine before the present one, as far as the homes that were opened know them."""
_adopted: set[ProcessRef] = set()
"""Children of this process whose exit status is ramet's to collect."""


class Liveness(enum.Enum):
    """The answer to whether a process runs. Only `DEAD` allows anything to be destroyed."""

    ALIVE = "alive"
    DEAD = "dead"
    UNKNOWN = "unknown"
    """It belongs to another machine or another PID namespace, or `/proc` hides it."""


class _View(NamedTuple):
    """The part of the system that this process sees. It stays what it is until the process forks."""

    namespace: int
    """This process's PID namespace; 0: the kernel has none."""
    shows_own: bool
    """`/proc` is this namespace's. Else, after unshare(2) say, it is one's above it."""
    shows_all: bool
    """`/proc` is the initial namespace's, above all others."""
    offset_ticks: int
    """By how much start times differ from those of the initial time namespace (time_namespaces(7))."""
    slack_ticks: int


@functools.cache
def boot_id() -> str:
    """This boot of this machine, from random(4)'s `/proc/sys/kernel/random/boot_id`."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError as error:
        raise _no_proc(error) from error


def know_past_boots(boot_ids: Iterable[str]) -> None:
    """Those were earlier boots of this very machine: what was started under one of them is dead."""
    _past_boots.update(boot_ids)
    _past_boots.discard(boot_id())


@functools.cache
def _view() -> _View:
    try:
        namespace = _inode("/proc/self/ns/pid")
        status = Path("/proc/self/status").read_bytes()
    except OSError as error:
        raise _no_proc(error) from error
    # From /proc's namespace down to the process's own, the pid in each.
    shows_own = len(_line(status, b"NSpid:") or [b""]) == 1
    try:
        shows_all = (namespace if shows_own else _inode("/proc/1/ns/pid")) in (0, _INITIAL_PID_NAMESPACE)
    except OSError:
        shows_all = False
    tick_ns = _SECOND_NS // os.sysconf("SC_CLK_TCK")
    offset_ns = time_offset_ns()
    # The kernel adds the offset before it divides.
    return _View(namespace, shows_own, shows_all, offset_ns // tick_ns, int(offset_ns % tick_ns != 0))


def _no_proc(error: OSError) -> UnavailableError:
    return UnavailableError(
        f"no process can be told from another: {error}", hint="mount /proc: `mount -t proc proc /proc`"
    )


def _inode(path: str) -> int:
    """The inode behind a link in /proc; 0 where the kernel lacks the file. Raises `OSError`."""
    try:
        return os.stat(path).st_ino  # noqa: PTH116 - for each process of many
    except FileNotFoundError:
        if os.path.exists("/proc/self/stat"):  # noqa: PTH110
            return 0
        raise


def _line(status: bytes, name: bytes) -> list[bytes] | None:
    """The words behind `name` in proc(5)'s `/proc/PID/status`, or None."""
    for line in status.splitlines():
        if line.startswith(name):
            return line.split()[1:]
    return None


def time_offset_ns() -> int:
    """What this process's time namespace adds to the time since boot."""
    if _inode("/proc/self/ns/time") in (0, _INITIAL_TIME_NAMESPACE):
        return 0
    for line in Path("/proc/self/timens_offsets").read_text().splitlines():
        clock, seconds, nanoseconds = line.split()
        if clock in ("boottime", "7"):
            return int(seconds) * _SECOND_NS + int(nanoseconds)
    return 0


def stat_fields(name: str) -> list[bytes]:
    """The fields of proc(5)'s `/proc/NAME/stat`, from the third on.

    Raises `ProcessLookupError` when /proc shows no such process, `PermissionError` when it hides it.
    """
    try:
        stat = Path(f"/proc/{name}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise ProcessLookupError(f"no process {name}") from error
    # The second field is the program's name in parentheses, which may itself hold spaces and parentheses.
    return stat[stat.rindex(b")") + 2 :].split()


def _started(name: str) -> int:
    return int(stat_fields(name)[_STARTED_FIELD - 3]) - _view().offset_ticks


def _is_start(started: int, process: ProcessRef) -> bool:
    return abs(started - process.started) <= _view().slack_ticks


@functools.cache
def this_process() -> ProcessRef:
    """The running ramet process, as owner of what it makes. Another one in a child that was forked."""
    return ProcessRef(os.getpid(), _started("self"), boot_id(), _view().namespace)


def reference(pid: int) -> ProcessRef:
    """The process that has `pid` now, in this process's PID namespace.

    Raises `ProcessLookupError` when there is none.
    """
    if _view().shows_own:
        return ProcessRef(pid, _started(str(pid)), boot_id(), _view().namespace)
    pidfd = os.pidfd_open(pid)
    try:
        return ProcessRef(pid, _started(_name_of(pid, pidfd)), boot_id(), _view().namespace)
    finally:
        os.close(pidfd)


def reference_in_proc(name: str) -> ProcessRef:
    """The process that `/proc/NAME` shows, of whatever namespace: as it would name itself.

    Raises `OSError`.
    """
    view = _view()
    namespace = _inode(f"/proc/{name}/ns/pid")
    if view.shows_own and namespace == view.namespace:
        return ProcessRef(int(name), _started(name), boot_id(), namespace)
    pids = _line(Path(f"/proc/{name}/status").read_bytes(), b"NSpid:") or [name.encode()]
    return ProcessRef(int(pids[-1]), _started(name), boot_id(), namespace)


def _name_of(pid: int, pidfd: int) -> str:
    """How `/proc` calls the process behind a pidfd. Raises `ProcessLookupError` when it doesn't show it."""
    if _view().shows_own:
        return str(pid)
    words = _line(Path(f"/proc/self/fdinfo/{pidfd}").read_bytes(), b"Pid:")
    if not words or int(words[0]) <= 0:
        raise ProcessLookupError(f"/proc doesn't show process {pid}")
    return words[0].decode()


_NAME: Final = re.compile(
    r"(?P<pid>\d+)-(?P<started>\d+)-(?P<boot_id>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"
    r"(?:-(?P<pid_namespace>\d+))?",
    re.ASCII,
)


def as_name(process: ProcessRef) -> str:
    """`process` as a part of a file's name, without a dot."""
    return f"{process.pid}-{process.started}-{process.boot_id}-{process.pid_namespace}"


def from_name(text: str) -> ProcessRef | None:
    """The process that `as_name` has written, also an older ramet's; None when it has not."""
    match = _NAME.fullmatch(text)
    if match is None:
        return None
    return ProcessRef(
        int(match["pid"]), int(match["started"]), match["boot_id"], int(match["pid_namespace"] or 0)
    )


def is_this_boot(process: ProcessRef) -> bool:
    """It was started on this machine since it was booted. Its sockets can be reached then."""
    return process.boot_id == boot_id()


def is_here(process: ProcessRef) -> bool:
    """It was started under this boot and in this PID namespace, and `/proc` shows this namespace: pids mean
    what they say.
    """
    view = _view()
    return process.boot_id == boot_id() and process.pid_namespace in (0, view.namespace) and view.shows_own


def is_same(one: ProcessRef, other: ProcessRef) -> bool:
    """Both name one process, though one of them may have been written before namespaces were noted, or in a
    time namespace, where a start may be one tick later: no pid is used again within that.
    """
    return (
        (one.pid, one.boot_id) == (other.pid, other.boot_id)
        and abs(one.started - other.started) <= 1
        and (one.pid_namespace == other.pid_namespace or 0 in (one.pid_namespace, other.pid_namespace))
    )


def liveness(process: ProcessRef) -> Liveness:
    """Whether `process` still runs, as far as it can be told from here. A zombie doesn't run.

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
    """`process` is known to have ended: what it left may be undone or removed. Raises as `liveness`."""
    return liveness(process) is Liveness.DEAD


def is_alive(process: ProcessRef) -> bool:
    """`process` is known to run. For what people are shown: that it isn't known to run is no reason to
    destroy anything, see `is_dead`. Raises as `liveness`.
    """
    return liveness(process) is Liveness.ALIVE


def _is_shown(process: ProcessRef) -> bool:
    """`/proc` shows it, though it can't be reached: a namespace above this one has it."""
    if process.boot_id != boot_id() or process.pid_namespace in (0, _view().namespace):
        return False
    try:
        return _find(process) is not None
    except PermissionError:
        return False


def open_pidfd(process: ProcessRef) -> int | None:
    """A pidfd of `process` that the caller closes, or None when it is dead; a child of ours is reaped then.

    Raises `UnseenError` when it can't be told from here, `UnavailableError` for want of descriptors: neither
    must ever pass for "dead".
    """
    if process.boot_id != boot_id():
        if process.boot_id in _past_boots:
            return None
        raise unseen(process)
    view = _view()
    if process.pid_namespace in (0, view.namespace):
        return _pin(process, process.pid)
    # It may be in a namespace below this one, which has pids of its own for all that is there.
    try:
        name = _find(process)
    except PermissionError as error:
        raise unseen(process) from error
    if name is not None and view.shows_own:
        return _pin(process, int(name))
    if name is None and view.shows_all and _hides_nothing():
        return None
    raise unseen(process)


def _pin(process: ProcessRef, pid: int) -> int | None:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    except OSError as error:
        raise _cannot_look(process, error) from error
    try:
        # Only after the pidfd pins the pid does comparing start times prove anything.
        try:
            is_it = _is_start(_started(_name_of(pid, pidfd)), process)
        except (ProcessLookupError, PermissionError) as error:
            if not has_ended(pidfd):
                raise unseen(process) from error  # hidepid (proc(5)), or it is above what /proc shows
            return None
        except OSError as error:
            raise _cannot_look(process, error) from error
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


def _cannot_look(process: ProcessRef, error: OSError) -> UnavailableError:
    """The error for want of descriptors or of memory: it says nothing about `process`."""
    return UnavailableError(
        f"process {process.pid} can't be looked at: {error.strerror}", hint="raise the limit on open files"
    )


def _hides_nothing() -> bool:
    """Not mounted with `hidepid` (proc(5)), or not for this user."""
    try:
        stat_fields("1")
    except OSError:
        return False
    return True


def proc_names() -> Iterator[str]:
    """The processes that `/proc` shows. Raises `OSError`."""
    return (name for name in os.listdir("/proc") if name.isdigit())  # noqa: PTH208 - names alone


class _Index(NamedTuple):
    """The processes that /proc showed at one moment, by when they had started.

    A process that had started before and isn't in it was dead by then, so the index never grows old for it.
    """

    taken_ticks: int
    names: dict[int, list[str]]


_index: _Index | None = None


def _indexed(process: ProcessRef) -> list[str]:
    """The names in `/proc` of those that started when `process` did.

    Raises `OSError` when one couldn't be looked at for want of descriptors, say: an index without it would
    show it dead from then on.
    """
    global _index
    if _index is None or process.started + 1 >= _index.taken_ticks:
        now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time_offset_ns()
        names: dict[int, list[str]] = {}
        for name in proc_names():
            try:
                names.setdefault(_started(name), []).append(name)
            except (ProcessLookupError, PermissionError):
                continue  # it has ended, or is hidden: then `_hides_nothing` says no
        _index = _Index(now_ns * os.sysconf("SC_CLK_TCK") // _SECOND_NS, names)
    slack = _view().slack_ticks
    starts = range(process.started - slack, process.started + slack + 1)
    return [name for start in starts for name in _index.names.get(start, [])]


def _find(process: ProcessRef) -> str | None:
    """The name in `/proc` of a living process of another namespace; None when it isn't shown.

    Raises `PermissionError` when one is shown that may be it, and is another user's; `UnavailableError` when
    this process has no descriptor left to look with.
    """
    try:
        names = _indexed(process)
    except OSError as error:
        raise _cannot_look(process, error) from error
    for name in names:
        try:
            found = reference_in_proc(name)
            if found.pid_namespace == process.pid_namespace and found.pid == process.pid:
                return name if stat_fields(name)[0] not in (b"Z", b"X") else None
        except PermissionError:
            if _may_be(process, name):
                raise
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
        except OSError as error:
            raise _cannot_look(process, error) from error
    return None


def _may_be(process: ProcessRef, name: str) -> bool:
    """Anybody may read a process's pids, but not its namespace."""
    try:
        pids = _line(Path(f"/proc/{name}/status").read_bytes(), b"NSpid:")
    except (FileNotFoundError, ProcessLookupError):
        return False  # it has ended
    except OSError:
        return True
    return pids is None or int(pids[-1]) == process.pid


def local_pid(process: ProcessRef) -> int:
    """The number by which this process, and `/proc`, know `process`: its own pid, unless it is of a namespace
    below this one.

    Raises `UnseenError` when it can't be seen from here, `VmmError` when it is gone. Whoever reads
    `/proc/PID` of a recorded process asks here first: the same number may be somebody else's.
    """
    if is_here(process):
        return process.pid
    pidfd = open_pidfd(process)
    if pidfd is None:
        raise VmmError(f"process {process.pid} has ended")
    os.close(pidfd)
    try:
        name = _find(process)
    except PermissionError:
        name = None
    if name is None or not _view().shows_own:
        raise unseen(process)
    return int(name)


def why_unseen(process: ProcessRef) -> str | None:
    """Why it can't be told from here whether `process` lives, in words that follow its name; None when it
    can be.
    """
    return why_out_of_reach(process) if liveness(process) is Liveness.UNKNOWN else None


def why_out_of_reach(process: ProcessRef) -> str:
    """Why `open_pidfd` can't open it, in the same words."""
    if process.boot_id != boot_id():
        return f"it was started on another machine (boot {process.boot_id[:8]})"
    if process.pid_namespace not in (0, _view().namespace):
        return f"it was started in another PID namespace (pid:[{process.pid_namespace}])"
    return "this /proc doesn't show it"


def unseen(process: ProcessRef) -> UnseenError:
    """The error of whoever would have to see `process`."""
    return UnseenError(
        f"process {process.pid} can't be seen from here: {why_out_of_reach(process)}",
        hint=where_to_look(process),
    )


def where_to_look(process: ProcessRef) -> str:
    """Where `process` can be seen, in words for a hint."""
    if process.boot_id != boot_id():
        return "run ramet on the machine where it was started"
    if process.pid_namespace not in (0, _view().namespace):
        return "run ramet in the container where it was started, or on the host"
    return "mount a /proc of this PID namespace, without hidepid"


def require_own_proc() -> None:
    """Raise `UnavailableError` unless `/proc` shows this process's own PID namespace: its guests' memory is
    read through `/proc/PID`.
    """
    if not _view().shows_own:
        raise UnavailableError(
            "/proc shows another PID namespace's processes",
            hint="mount one of this namespace: `mount -t proc proc /proc`, `unshare --mount-proc`",
        )


def has_ended(pidfd: int) -> bool:
    """The process behind a pidfd doesn't run any more."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def adopt(child: ProcessRef) -> None:
    """It is a child of this process whose exit status nobody else wants: whoever finds it ended collects
    it.
    """
    _adopted.add(child)


def reap(process: ProcessRef, pidfd: int) -> None:
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


def _forget() -> None:
    """In a child that was forked: it is another process, has no children, and may be in another namespace."""
    global _index
    _index = None
    _adopted.clear()
    _view.cache_clear()
    this_process.cache_clear()


in_children(_forget)
