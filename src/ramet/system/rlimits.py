"""The limits of a process that outlives its caller, independent of the caller's limits.

A VMM lives for days, and may have been started in any shell. The shell's limits could kill it (CPU time),
take its guest's data (the size of files) or keep it from starting (address space). So each limit of
getrlimit(2) has a rule here: raised as far as that is allowed, or refused by name before anything is started.

| limit | rule |
| --- | --- |
| FSIZE | what the largest disk or log needs: `drivers.log_limits`. Refused where the hard limit is less |
| AS, DATA | as large as allowed. Refused where guest RAM doesn't fit |
| CPU | as much as allowed. Refused where that is less than ten minutes |
| STACK | 8 MiB, unless it is unlimited or from 1 to 64 MiB: each thread has so much |
| CORE | none: the core of a VMM is its guest's RAM, secrets and all |
| NOFILE, NPROC, MEMLOCK, SIGPENDING, MSGQUEUE, RTTIME | as many as allowed |
| NICE, RTPRIO | inherited: they permit, and ramet asks for nothing |
| LOCKS, RSS | Linux ignores them |

Inherited on purpose, as by any program: niceness, I/O priority, scheduling policy, CPU affinity, the OOM
score's adjustment, cgroups, timer slack. `umask` is 077: a home's files are private (I9). Dumpability is set
anew by execve(2), blocked and ignored signals by `launching`.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, NamedTuple

from ramet.errors import UnavailableError, VmmError
from ramet.model.record import ProcessRef
from ramet.system.liveness import local_pid, open_pidfd
from ramet.units import MIB, format_bytes

UMASK: Final = 0o077
INFINITE: Final = resource.RLIM_INFINITY
_STACK_BYTES: Final = 8 * MIB
_LEAST_STACK_BYTES: Final = MIB
_LARGEST_STACK_BYTES: Final = 64 * MIB
_BESIDES_RAM_BYTES: Final = 32 * MIB
"""Least address space that a VMM needs besides guest RAM."""
_LEAST_CPU_S: Final = 600
_AT_EXEC: Final = frozenset({resource.RLIMIT_AS, resource.RLIMIT_DATA, resource.RLIMIT_STACK})
"""Limits that a program reads as it begins; the others may be set a moment later."""


class Needs(NamedTuple):
    """The needs of a process."""

    file_bytes: int | None = None
    """The size that its largest file may have, and no more than that; None: any."""
    mapped_bytes: int = 0
    """Guest RAM that it maps."""


class _Rule(NamedTuple):
    number: int
    option: str
    """The option of the shell's `ulimit`."""
    what: str

    @property
    def name(self) -> str:
        return next(
            name
            for name in dir(resource)
            if name.startswith("RLIMIT_") and getattr(resource, name) == self.number
        )


_RULES: Final = (
    _Rule(resource.RLIMIT_FSIZE, "-f", "a file of a guest's may have"),
    _Rule(resource.RLIMIT_AS, "-v", "a VMM may have an address space of"),
    _Rule(resource.RLIMIT_DATA, "-d", "a VMM may have private memory of"),
    _Rule(resource.RLIMIT_CPU, "-t", "a VMM would be killed after CPU time of"),
    _Rule(resource.RLIMIT_STACK, "-s", "a VMM's threads may have stacks of"),
    _Rule(resource.RLIMIT_CORE, "-c", "a core file may have"),
    _Rule(resource.RLIMIT_NOFILE, "-n", "open files"),
    _Rule(resource.RLIMIT_NPROC, "-u", "processes"),
    _Rule(resource.RLIMIT_MEMLOCK, "-l", "locked memory"),
    _Rule(resource.RLIMIT_SIGPENDING, "-i", "pending signals"),
    _Rule(resource.RLIMIT_MSGQUEUE, "-q", "message queues"),
    _Rule(resource.RLIMIT_RTTIME, "-R", "real-time without a rest"),
)


class Setting(NamedTuple):
    """A limit as a process is to have it."""

    number: int
    soft: int
    hard: int


def settings(needs: Needs) -> list[Setting]:
    """List the limits that a long-living process is to have and that differ from this process's.

    Raises `UnavailableError`, which names the limit and how to raise it, where a hard limit is too low and
    this process may not raise it.
    """
    changed = []
    for rule in _RULES:
        soft, hard = resource.getrlimit(rule.number)
        wanted, least = _wanted(rule.number, needs, soft, hard)
        if wanted == soft:
            continue
        if _exceeds(wanted, hard):
            if _may_raise(rule.number):
                hard = INFINITE
            elif hard < least:
                raise _too_low(rule, hard, least)
            else:
                wanted = hard
        if wanted != soft:
            changed.append(Setting(rule.number, wanted, hard))
    return changed


def statements(changed: list[Setting]) -> Iterator[str]:
    """Python that sets those which a program has to find when it begins; for `launching.launched`."""
    at_exec = [tuple(limit) for limit in changed if limit.number in _AT_EXEC]
    if at_exec:
        yield "import resource"
        yield f"[resource.setrlimit(number, limits) for number, *limits in {at_exec}]"


def impose(pid: int, changed: list[Setting]) -> None:
    """Set the others, of a child that this process has just started and not waited for."""
    for limit in changed:
        if limit.number not in _AT_EXEC:
            with suppress(ProcessLookupError):  # it has ended: its next caller finds out
                resource.prlimit(pid, limit.number, (limit.soft, limit.hard))


def lift(pid: int) -> None:
    """Raise the limits of a child of ramet that outlives this process, as far as that is allowed."""
    for rule in _RULES:
        if rule.number == resource.RLIMIT_CORE:
            continue
        with suppress(
            OSError, ValueError
        ):  # it has ended, or keeps its limits: a failure there is reported there
            _, hard = resource.prlimit(pid, rule.number)
            resource.prlimit(pid, rule.number, (hard, hard))


def _limit_files(pid: int, file_bytes: int | None) -> None:
    """Limit the size of files that a process writes (EFBIG, RLIMIT_FSIZE); None: any size that is allowed.

    Only the soft limit is set, which can be raised again; the hard limit where it is too low and may be
    raised. Raises `UnavailableError` where it may not; `ProcessLookupError`, `PermissionError` of another
    user's process.
    """
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    soft = INFINITE if file_bytes is None else file_bytes
    if _exceeds(soft, hard):
        try:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, INFINITE))
            return
        except (PermissionError, ValueError):
            if file_bytes is not None:
                raise _too_low(_RULES[0], hard, file_bytes) from None
            soft = hard
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))


def limit_files(process: ProcessRef, largest_file_bytes: int | None) -> None:
    """Limit the size of every file that `process` writes; None: as large as its hard limit allows.

    Beyond it a write fails with EFBIG (RLIMIT_FSIZE, getrlimit(2)). Only the soft limit is set, which can be
    raised again for a file that has to be larger. Does nothing when the process has ended, which its next
    caller notices. Raises `UnavailableError` when it belongs to another user, or when its hard limit is lower
    and may not be raised.
    """
    pidfd = open_pidfd(process)  # while it is held, the pid isn't reused
    if pidfd is None:
        return
    try:
        _limit_files(local_pid(process), largest_file_bytes)
    except (VmmError, ProcessLookupError):
        pass  # it has ended meanwhile
    except PermissionError as error:
        raise UnavailableError(
            f"process {process.pid} belongs to another user and can't be limited",
            hint="run ramet as that user",
        ) from error
    finally:
        os.close(pidfd)


def limit_of_files(process: ProcessRef) -> int | None:
    """Return the size limit of files that `process` writes, see `limit_files`.

    None when there is no limit, or no such process.
    """
    try:
        soft, _ = resource.prlimit(local_pid(process), resource.RLIMIT_FSIZE)
    except (ProcessLookupError, VmmError):
        return None
    return None if soft == resource.RLIM_INFINITY else soft


def raise_open_files_limit() -> None:
    """Let this process open as many files as its hard limit allows (getrlimit(2)).

    Each instance takes several.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def file_hint() -> str | None:
    """Return the remedy for EFBIG if this process's own limit causes it, else None."""
    soft, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if soft == INFINITE:
        return None
    return (
        f"files may have at most {format_bytes(soft)} here (RLIMIT_FSIZE): raise that by"
        " `ulimit -f unlimited`, LimitFSIZE= in a systemd unit, or `fsize` in /etc/security/limits.conf"
    )


def _wanted(number: int, needs: Needs, soft: int, hard: int) -> tuple[int, int]:
    """Return the soft limit to have, and the least that is enough."""
    match number:
        case resource.RLIMIT_FSIZE:
            return (INFINITE, 0) if needs.file_bytes is None else (needs.file_bytes, needs.file_bytes)
        case resource.RLIMIT_AS | resource.RLIMIT_DATA:
            return INFINITE, needs.mapped_bytes + (_BESIDES_RAM_BYTES if number == resource.RLIMIT_AS else 0)
        case resource.RLIMIT_CPU:
            return INFINITE, _LEAST_CPU_S
        case resource.RLIMIT_STACK:
            is_fit = soft == INFINITE or _LEAST_STACK_BYTES <= soft <= _LARGEST_STACK_BYTES
            return soft if is_fit else _STACK_BYTES, _LEAST_STACK_BYTES
        case resource.RLIMIT_CORE:
            return 0, 0
        case _:
            return hard, 0


def _exceeds(limit: int, other: int) -> bool:
    return other != INFINITE and (limit == INFINITE or limit > other)


def _may_raise(number: int) -> bool:
    """Tell whether this process may raise a hard limit (prlimit(2), CAP_SYS_RESOURCE).

    Tried, because a capability says nothing inside of a user namespace.
    """
    soft, hard = resource.getrlimit(number)
    try:
        resource.setrlimit(number, (soft, INFINITE))
    except (OSError, ValueError):
        return False
    resource.setrlimit(number, (soft, hard))
    return True


def _too_low(rule: _Rule, hard: int, least: int) -> UnavailableError:
    if rule.number == resource.RLIMIT_CPU:
        limit, needed = f"{hard} s", f"at least {least} s are asked for"
    else:
        limit, needed = format_bytes(hard), f"{format_bytes(least)} are needed"
    return UnavailableError(
        f"{rule.what} {limit} at most, by the hard limit {rule.name} of this process, and {needed}",
        hint=f"raise it by `ulimit {rule.option} unlimited` as root, or where it was set: a shell's profile,"
        f" /etc/security/limits.conf, Limit{rule.name.removeprefix('RLIMIT_')}= in a systemd unit",
    )
