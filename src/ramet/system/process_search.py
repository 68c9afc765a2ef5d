"""Find the entry in /proc of a process that was recorded under another pid."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ramet.model.record import ProcessRef
from ramet.system.forked import in_children
from ramet.system.process_ref import (
    SECOND_NS,
    cannot_look,
    proc_view,
    reference_in_proc,
    start_ticks,
    stat_fields,
    status_line,
    time_offset_ns,
)


def hides_nothing() -> bool:
    """Not mounted with `hidepid` (proc(5)), or not for this user."""
    try:
        stat_fields("1")
    except OSError:
        return False
    return True


def proc_names() -> Iterator[str]:
    """Yield the processes that `/proc` shows. Raises `OSError`."""
    return (name for name in os.listdir("/proc") if name.isdigit())  # noqa: PTH208 - names alone


class _Index(NamedTuple):
    """The processes that /proc showed at one moment, by when they had started.

    A process that had started before and isn't in it was dead by then, so the index never grows old for it.
    """

    taken_ticks: int
    names: dict[int, list[str]]


_index: _Index | None = None


def _indexed(process: ProcessRef) -> list[str]:
    """List the names in `/proc` of processes that started when `process` did.

    Raises `OSError` when a process couldn't be looked at, for want of descriptors for example: an index
    without it would show it dead from then on.
    """
    global _index
    if _index is None or process.started + 1 >= _index.taken_ticks:
        now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time_offset_ns()
        names: dict[int, list[str]] = {}
        for name in proc_names():
            try:
                names.setdefault(start_ticks(name), []).append(name)
            except (ProcessLookupError, PermissionError):
                continue  # it has ended, or is hidden: then `hides_nothing` says no
        _index = _Index(now_ns * os.sysconf("SC_CLK_TCK") // SECOND_NS, names)
    slack = proc_view().slack_ticks
    starts = range(process.started - slack, process.started + slack + 1)
    return [name for start in starts for name in _index.names.get(start, [])]


def find_in_proc(process: ProcessRef) -> str | None:
    """Find the name in `/proc` of a living process of another namespace; None when it isn't shown.

    Raises `PermissionError` when another user's process is shown that may be it; `UnavailableError` when this
    process has no descriptor left to look with.
    """
    try:
        names = _indexed(process)
    except OSError as error:
        raise cannot_look(process, error) from error
    for name in names:
        try:
            candidate = reference_in_proc(name)
            if candidate.pid_namespace == process.pid_namespace and candidate.pid == process.pid:
                return name if stat_fields(name)[0] not in (b"Z", b"X") else None
        except PermissionError:
            if _may_be(process, name):
                raise
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
        except OSError as error:
            raise cannot_look(process, error) from error
    return None


def _may_be(process: ProcessRef, name: str) -> bool:
    """Anybody may read a process's pids, but not its namespace."""
    try:
        pids = status_line(Path(f"/proc/{name}/status").read_bytes(), b"NSpid:")
    except (FileNotFoundError, ProcessLookupError):
        return False  # it has ended
    except OSError:
        return True
    return pids is None or int(pids[-1]) == process.pid


def _forget() -> None:
    """Forget the index in a forked child, which may be in another namespace."""
    global _index
    _index = None


in_children(_forget)
