"""The limits that forks meet, and about how many forks each allows: the user's, the machine's, the cgroups'.

Sources: getrlimit(2); inotify(7); cgroups(7); Documentation/mm/overcommit-accounting.rst.
"""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Final

from ramet.system import cgroups
from ramet.system.doctor.finding import Finding
from ramet.units import GIB, MIB, format_bytes

# What one emulated fork of the built-in image costs, measured: QEMU's threads, its private memory, and the
# descriptors of the ramet process while a command runs in every fork (one each otherwise).
_THREADS_A_FORK: Final = 4
_BYTES_A_FORK: Final = 25 * MIB
_FILES_A_FORK: Final = 5
_FILES_BESIDES: Final = 60
_FEW_FORKS: Final = 64
"""Below it a limit is worth a warning."""
_LITTLE_MEMORY_BYTES: Final = GIB
_FEW_FOLLOWERS: Final = 64


def limit_findings() -> list[Finding]:
    """Open files, processes, CPUs, inotify, memory, overcommit: about how many forks each allows."""
    memory = {
        name: int(rest.split()[0]) * 1024
        for name, _, rest in (line.partition(":") for line in Path("/proc/meminfo").read_text().splitlines())
    }
    return [_open_files(), _processes(), _cpus(), _inotify(), _memory(), _overcommit(memory)]


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _limit(
        "open-files",
        f"{_shown(soft)}, which ramet raises to the hard limit, {_shown(hard)}",
        None if hard == resource.RLIM_INFINITY else (hard - _FILES_BESIDES) // _FILES_A_FORK,
        "raise it: `nofile` in /etc/security/limits.conf, LimitNOFILE= in a systemd unit",
    )


def _processes() -> Finding:
    room = cgroups.processes_left()
    limit = _processes_of_user()
    if room is None:
        return limit
    of_cgroup = _limit(
        "processes",
        f"{room.most} in the cgroup {room.limited_by}, which takes {room.left} more",
        room.left // _THREADS_A_FORK,
        "raise that cgroup's limit: a container's `--pids-limit`, TasksMax= in a systemd unit",
    )
    # The worse of the two: false before null before true.
    return min(of_cgroup, limit, key=lambda finding: {False: 0, None: 1, True: 2}[finding.ok])


def _cpus() -> Finding:
    here, allowed, quota = os.cpu_count() or 1, cgroups.allowed_cpus(), cgroups.cpu_quota()
    fact = f"{allowed} of {here} may be used"
    if quota is not None and quota[0] < allowed:
        fact += f", {quota[0]:g} at a time by the quota of the cgroup {quota[1]}"
    return Finding("cpus", True, f"{fact}: {3 * cgroups.usable_cpus()} forks are made at once")


def _processes_of_user() -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    # The kernel doesn't hold root to it (getrlimit(2)).
    if soft == resource.RLIM_INFINITY or os.geteuid() == 0:
        return Finding(
            "processes", True, f"{_shown(soft)}{'' if os.geteuid() else ', which root may exceed'}"
        )
    used = _threads_of_this_user()
    return _limit(
        "processes",
        f"{soft}, of which {used} are in use",
        (soft - used) // _THREADS_A_FORK,
        "raise it: `nproc` in /etc/security/limits.conf, TasksMax= in a systemd unit",
    )


def _threads_of_this_user() -> int:
    user = os.geteuid()

    def count(entry: Path) -> int:
        try:
            return sum(1 for _ in (entry / "task").iterdir()) if entry.stat().st_uid == user else 0
        except OSError:
            return 0  # it has just ended

    return sum(count(entry) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def _inotify() -> Finding:
    try:
        most = int(Path("/proc/sys/fs/inotify/max_user_instances").read_text())
    except OSError:
        return Finding("inotify", None, "this kernel has none", "logs are followed by looking every 0.25 s")
    fact = f"{most} instances per user: one per followed log, one per process that starts Firecrackers"
    if most >= _FEW_FOLLOWERS:
        return Finding("inotify", True, fact)
    return Finding("inotify", None, fact, "`sudo sysctl fs.inotify.max_user_instances=1024`")


def _memory() -> Finding:
    memory = cgroups.memory()
    available_bytes = memory.available_bytes
    fact = f"{format_bytes(available_bytes)} available"
    if memory.limited_by is not None:
        fact += f" ({memory.limited_by} allows {format_bytes(memory.total_bytes)})"
    forks = available_bytes // _BYTES_A_FORK
    if available_bytes >= _LITTLE_MEMORY_BYTES:
        return Finding("memory", True, f"{fact}: about {forks} forks that change little")
    return Finding(
        "memory", None, f"{fact}: about {forks} forks", "end something, or give guests less memory"
    )


def _overcommit(memory: dict[str, int]) -> Finding:
    mode = Path("/proc/sys/vm/overcommit_memory").read_text().strip()
    if mode != "2":
        return Finding("overcommit", True, f"vm.overcommit_memory is {mode}: shared pages aren't counted")
    left_bytes = max(0, memory["CommitLimit"] - memory["Committed_AS"])
    left = format_bytes(left_bytes)
    fact = f"vm.overcommit_memory is 2: each fork counts with its whole memory, and {left} are left"
    return Finding("overcommit", None, fact, "`sudo sysctl vm.overcommit_memory=0`")


def _limit(name: str, fact: str, forks: int | None, advice: str) -> Finding:
    if forks is None:
        return Finding(name, True, fact)
    enough = forks >= _FEW_FORKS
    fact = f"{fact}: about {max(0, forks)} forks"
    return Finding(name, True if enough else None if forks > 0 else False, fact, None if enough else advice)


def _shown(limit: int) -> str:
    return "unlimited" if limit == resource.RLIM_INFINITY else str(limit)
