"""References to processes: pid, start time, boot and PID namespace, written down and compared.

Sources: proc(5), pid_namespaces(7), time_namespaces(7).
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from ramet.errors import UnavailableError
from ramet.model.record import ProcessRef
from ramet.system.forked import in_children

_STARTED_FIELD: Final = 22
_INITIAL_PID_NAMESPACE: Final = 0xEFFFFFFC  # <linux/proc_ns.h>: PROC_PID_INIT_INO
_INITIAL_TIME_NAMESPACE: Final = 0xEFFFFFFA  # PROC_TIME_INIT_INO
SECOND_NS: Final = 1_000_000_000
_past_boots: set[str] = set()
"""Boot ids of this machine before the present one, as far as the homes that were opened know them."""
_NAME: Final = re.compile(
    r"(?P<pid>\d+)-(?P<started>\d+)-(?P<boot_id>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"
    r"(?:-(?P<pid_namespace>\d+))?",
    re.ASCII,
)


class ProcView(NamedTuple):
    """The part of the system that this process sees. It doesn't change until the process forks."""

    namespace: int
    """This process's PID namespace; 0 on a kernel without PID namespaces."""
    shows_own: bool
    """True if `/proc` is this namespace's. Else, for example after unshare(2), it is a parent namespace's."""
    shows_all: bool
    """`/proc` is the initial namespace's, above all others."""
    offset_ticks: int
    """Difference of start times from the initial time namespace's (time_namespaces(7))."""
    slack_ticks: int


@functools.cache
def boot_id() -> str:
    """Return this boot's id, from random(4)'s `/proc/sys/kernel/random/boot_id`."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError as error:
        raise no_proc(error) from error


def know_past_boots(boot_ids: Iterable[str]) -> None:
    """Remember earlier boots of this machine: what was started under one of them is dead."""
    _past_boots.update(boot_ids)
    _past_boots.discard(boot_id())


def is_of_past_boot(process: ProcessRef) -> bool:
    """Tell whether the process was started in an earlier boot of this machine."""
    return process.boot_id in _past_boots


@functools.cache
def proc_view() -> ProcView:
    """Examine what /proc shows this process. Raises `UnavailableError` where it isn't mounted."""
    try:
        namespace = namespace_inode("/proc/self/ns/pid")
        status = Path("/proc/self/status").read_bytes()
    except OSError as error:
        raise no_proc(error) from error
    # From /proc's namespace down to the process's own, the pid in each.
    shows_own = len(status_line(status, b"NSpid:") or [b""]) == 1
    try:
        shows_all = (namespace if shows_own else namespace_inode("/proc/1/ns/pid")) in (
            0,
            _INITIAL_PID_NAMESPACE,
        )
    except OSError:
        shows_all = False
    tick_ns = SECOND_NS // os.sysconf("SC_CLK_TCK")
    offset_ns = time_offset_ns()
    # The kernel adds the offset before it divides.
    return ProcView(namespace, shows_own, shows_all, offset_ns // tick_ns, int(offset_ns % tick_ns != 0))


def no_proc(error: OSError) -> UnavailableError:
    """Make the error for a machine without /proc."""
    return UnavailableError(
        f"processes can't be identified: {error}", hint="mount /proc: `mount -t proc proc /proc`"
    )


def namespace_inode(path: str) -> int:
    """Return the inode behind a link in /proc; 0 if the kernel lacks the file. Raises `OSError`."""
    try:
        return os.stat(path).st_ino  # noqa: PTH116 - for each process of many
    except FileNotFoundError:
        if os.path.exists("/proc/self/stat"):  # noqa: PTH110
            return 0
        raise


def status_line(status: bytes, name: bytes) -> list[bytes] | None:
    """Return the words behind `name` in proc(5)'s `/proc/PID/status`, or None."""
    for line in status.splitlines():
        if line.startswith(name):
            return line.split()[1:]
    return None


def time_offset_ns() -> int:
    """Return the offset of this process's time namespace to the time since boot."""
    if namespace_inode("/proc/self/ns/time") in (0, _INITIAL_TIME_NAMESPACE):
        return 0
    for line in Path("/proc/self/timens_offsets").read_text().splitlines():
        clock, seconds, nanoseconds = line.split()
        if clock in ("boottime", "7"):
            return int(seconds) * SECOND_NS + int(nanoseconds)
    return 0


def stat_fields(name: str) -> list[bytes]:
    """Return the fields of proc(5)'s `/proc/NAME/stat`, from the third on.

    Raises `ProcessLookupError` when /proc shows no such process, `PermissionError` when it hides it.
    """
    try:
        stat = Path(f"/proc/{name}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise ProcessLookupError(f"no process {name}") from error
    # The second field is the program's name in parentheses, which may itself hold spaces and parentheses.
    return stat[stat.rindex(b")") + 2 :].split()


def start_ticks(name: str) -> int:
    """Return a process's start in ticks after the boot, outside of a time namespace.

    Errors as `stat_fields`.
    """
    return int(stat_fields(name)[_STARTED_FIELD - 3]) - proc_view().offset_ticks


def is_start_of(started: int, process: ProcessRef) -> bool:
    """Tell whether that start is the process's, within the rounding of a time namespace."""
    return abs(started - process.started) <= proc_view().slack_ticks


@functools.cache
def this_process() -> ProcessRef:
    """Return the running ramet process, as owner of what it makes. A forked child is another process."""
    return ProcessRef(os.getpid(), start_ticks("self"), boot_id(), proc_view().namespace)


def reference(pid: int) -> ProcessRef:
    """Return the process that has `pid` now, in this process's PID namespace.

    Raises `ProcessLookupError` when there is none.
    """
    if proc_view().shows_own:
        return ProcessRef(pid, start_ticks(str(pid)), boot_id(), proc_view().namespace)
    pidfd = os.pidfd_open(pid)
    try:
        return ProcessRef(pid, start_ticks(proc_name_of(pid, pidfd)), boot_id(), proc_view().namespace)
    finally:
        os.close(pidfd)


def reference_in_proc(name: str) -> ProcessRef:
    """Return the process that `/proc/NAME` shows, of any namespace, as it would name itself.

    Raises `OSError`.
    """
    view = proc_view()
    namespace = namespace_inode(f"/proc/{name}/ns/pid")
    if view.shows_own and namespace == view.namespace:
        return ProcessRef(int(name), start_ticks(name), boot_id(), namespace)
    pids = status_line(Path(f"/proc/{name}/status").read_bytes(), b"NSpid:") or [name.encode()]
    return ProcessRef(int(pids[-1]), start_ticks(name), boot_id(), namespace)


def proc_name_of(pid: int, pidfd: int) -> str:
    """Return the name in `/proc` of the process behind a pidfd.

    Raises `ProcessLookupError` if it has none.
    """
    if proc_view().shows_own:
        return str(pid)
    words = status_line(Path(f"/proc/self/fdinfo/{pidfd}").read_bytes(), b"Pid:")
    if not words or int(words[0]) <= 0:
        raise ProcessLookupError(f"/proc doesn't show process {pid}")
    return words[0].decode()


def as_name(process: ProcessRef) -> str:
    """Encode `process` as a part of a file's name, without a dot."""
    return f"{process.pid}-{process.started}-{process.boot_id}-{process.pid_namespace}"


def from_name(text: str) -> ProcessRef | None:
    """Decode a process that `as_name` has written, also an older ramet's; None for other text."""
    match = _NAME.fullmatch(text)
    if match is None:
        return None
    return ProcessRef(
        int(match["pid"]), int(match["started"]), match["boot_id"], int(match["pid_namespace"] or 0)
    )


def is_this_boot(process: ProcessRef) -> bool:
    """Tell whether the process was started in this boot: its sockets can be reached then."""
    return process.boot_id == boot_id()


def is_here(process: ProcessRef) -> bool:
    """Tell whether the pid names the process here.

    It does if the process was started under this boot and in this PID namespace, and `/proc` shows this
    namespace.
    """
    view = proc_view()
    return process.boot_id == boot_id() and process.pid_namespace in (0, view.namespace) and view.shows_own


def is_same(process: ProcessRef, other: ProcessRef) -> bool:
    """Tell whether both references name the same process.

    A reference may have been written before namespaces were noted, or in a time namespace, where a start may
    be one tick later: no pid is used again within a tick.
    """
    return (
        (process.pid, process.boot_id) == (other.pid, other.boot_id)
        and abs(process.started - other.started) <= 1
        and (
            process.pid_namespace == other.pid_namespace or 0 in (process.pid_namespace, other.pid_namespace)
        )
    )


def cannot_look(process: ProcessRef, error: OSError) -> UnavailableError:
    """Make the error for want of descriptors or of memory, which says nothing about `process`."""
    return UnavailableError(
        f"process {process.pid} can't be looked at: {error.strerror}", hint="raise the limit on open files"
    )


def _forget() -> None:
    """Forget this process in a forked child, which is another process, and may be in another namespace."""
    proc_view.cache_clear()
    this_process.cache_clear()


in_children(_forget)
