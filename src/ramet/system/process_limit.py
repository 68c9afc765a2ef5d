"""The limit that keeps another process or thread from being started, by name.

clone(2) says only EAGAIN, for four limits: the pids controller of any cgroup above (`pids.max`), the user's
`RLIMIT_NPROC`, the kernel's `threads-max` and `pid_max`. A thread can also lack address space for its stack.
"""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from ramet.errors import LimitReachedError, RametError
from ramet.system import cgroups

_NEARLY: Final = 16
"""A limit with more room than that isn't named: few processes have ended since."""
_LESS: Final = "ask for less at once"
_IN_WORDS: Final = (errno.EAGAIN, errno.EMFILE, errno.ENFILE)
_QUOTED_CHARACTERS: Final = 200


class Limit(NamedTuple):
    """A limit on processes and threads, of which `room` more can be started.

    `refusals` is how often the limit has refused one, if the kernel counts that.
    """

    room: int
    what: str
    cure: str
    refusals: int = 0


def why_none_starts() -> tuple[str, str]:
    """Return the reason that no process or thread can be started just now, and the remedy."""
    if (nearest := _nearest()) is not None:
        return nearest
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        return (
            "this process's address space is limited (RLIMIT_AS)",
            "raise `ulimit -v`, or ask for less at once",
        )
    return "the kernel starts no more processes or threads", f"end some, or {_LESS}"


def _nearest() -> tuple[str, str] | None:
    limits = sorted(_limits())
    return (limits[0].what, limits[0].cure) if limits and limits[0].room <= _NEARLY else None


def exhausted() -> Limit | None:
    """Return the limit that allows no further process or thread at this moment, if there is one."""
    return next((limit for limit in _limits() if limit.room <= 0), None)


@contextmanager
def named() -> Iterator[None]:
    """Raise `LimitReachedError` for an error inside that comes from a limit of the machine.

    The error is a system call's of this process, or a VMM's whose last words name the limit.
    """
    try:
        yield
    except (OSError, RametError) as error:
        reached = reached_by(error)
        if reached is None:
            raise
        raise reached from error


def reached_by(error: OSError | RametError, *, starting: bool = False) -> LimitReachedError | None:
    """Return the limit behind an error, if there is one.

    `starting`: a process was being started; other calls have other reasons for EAGAIN.
    """
    if isinstance(error, LimitReachedError):
        return error
    if isinstance(error, OSError):
        number, what = error.errno, os.fspath(error.filename) if error.filename else ""
        what = f"{os.fsdecode(what)}: " if what else ""
    else:
        number, what = (
            next((code for code in _IN_WORDS if os.strerror(code) in error.message), None),
            "",
        )
    if number == errno.EAGAIN:
        nearest = why_none_starts() if starting else _nearest()
        if nearest is None:
            return None
        why, cure = nearest
    elif number == errno.EMFILE:
        why = "a process may have no more open files (RLIMIT_NOFILE)"
        cure = f"raise `ulimit -n`, or {_LESS}"
    elif number == errno.ENFILE:
        why, cure = "the machine may have no more open files (fs.file-max)", f"raise fs.file-max, or {_LESS}"
    else:
        return None
    detail = "" if isinstance(error, OSError) else f" ({error.message[-_QUOTED_CHARACTERS:]})"
    return LimitReachedError(f"{what}{why}{detail}", hint=cure)


def _limits() -> Iterator[Limit]:
    for _, directory in cgroups.groups("pids"):
        try:
            most, now = (
                (directory / "pids.max").read_text().strip(),
                int((directory / "pids.current").read_text()),
            )
        except (OSError, ValueError):
            continue  # the root has none
        if most != "max":
            yield Limit(
                int(most) - now,
                f"the cgroup {directory} allows {most} processes and threads (pids.max)",
                "raise that cgroup's pids limit (a container's --pids-limit, a service's TasksMax)",
                _refusals(directory),
            )
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if soft != resource.RLIM_INFINITY and os.geteuid() != 0:
        yield Limit(
            soft - _tasks_of_this_user(),
            f"this user may have {soft} processes and threads (RLIMIT_NPROC)",
            "raise `ulimit -u`",
        )
    tasks = int(Path("/proc/loadavg").read_text().split()[3].partition("/")[2])
    for name in ("threads-max", "pid_max"):
        most_text = Path("/proc/sys/kernel", name).read_text().strip()
        yield Limit(
            int(most_text) - tasks,
            f"the kernel allows {most_text} tasks (kernel.{name})",
            f"raise kernel.{name}",
        )


def _refusals(directory: Path) -> int:
    try:
        words = (directory / "pids.events").read_text().split()
        return int(words[words.index("max") + 1])
    except (OSError, ValueError, IndexError):
        return 0  # an older kernel


def _tasks_of_this_user() -> int:
    """Count the threads of all visible processes of this user."""
    me, count = os.getuid(), 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if entry.stat().st_uid == me:
                    count += len(list((entry / "task").iterdir()))
            except OSError:
                continue  # it has ended
    return count
