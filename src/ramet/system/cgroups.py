"""The part of the machine that this process may use: the smallest limit of the machine and all cgroups.

In a container, a CI job or a systemd unit the kernel ends a process that takes more than its cgroup has, even
if `/proc/meminfo` shows more. Both versions are read, also side by side, each cgroup up to the top of what is
mounted, because a parent's limit holds for its children too.

Sources: Documentation/admin-guide/cgroup-v2.rst (memory.max, memory.high, memory.current, pids.max, cpu.max),
Documentation/admin-guide/cgroup-v1/memory.rst §5.2 and §6, Documentation/scheduler/sched-bwc.rst, cgroups(7),
cgroup_namespaces(7), proc(5) (mountinfo).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

from ramet.units import KIB

_UNLIMITED: Final = 1 << 60
"""cgroup v1 says "no limit" by a number near 2**63."""
_CPUS_AGAIN_S: Final = 10.0


class Group(NamedTuple):
    """A cgroup of this process, for one kind of limits."""

    version: int
    directory: Path


class Memory(NamedTuple):
    """Memory that this process and its children may use, all together."""

    total_bytes: int
    available_bytes: int
    """Memory without swapping: free, and reclaimable at once."""
    limited_by: Path | None
    """The cgroup that has less than the machine; None when the machine itself is the limit."""


class Room(NamedTuple):
    """The number of processes and threads that a cgroup still takes."""

    left: int
    most: int
    limited_by: Path


def memory(proc: Path = Path("/proc")) -> Memory:
    """Return the machine's memory, or the part that the tightest of this process's cgroups allows."""
    machine = _meminfo(proc)
    total, available, by = machine.get("MemTotal", _UNLIMITED), machine.get("MemAvailable", _UNLIMITED), None
    for group in groups("memory", proc):
        limit = _memory_limit(group)
        if limit is None:
            continue
        if limit < total:
            total, by = limit, group.directory
        used = _number(group.directory, "memory.current" if group.version == 2 else "memory.usage_in_bytes")
        if used is not None:
            available = min(available, max(0, limit - used + _inactive_file(group)))
    return Memory(total, min(available, total), by)


def processes_left(proc: Path = Path("/proc")) -> Room | None:
    """Return how many processes and threads the tightest cgroup still takes; None when none has a limit."""
    tightest: Room | None = None
    for group in groups("pids", proc):
        most, used = _number(group.directory, "pids.max"), _number(group.directory, "pids.current")
        if most is not None and used is not None:
            room = Room(max(0, most - used), most, group.directory)
            tightest = room if tightest is None or room.left < tightest.left else tightest
    return tightest


def cpu_quota(proc: Path = Path("/proc")) -> tuple[float, Path] | None:
    """Return the CPUs that this process's cgroups allow, and the limiting cgroup; None without a limit."""
    tightest: tuple[float, Path] | None = None
    for group in groups("cpu", proc):
        if group.version == 2:
            quota, _, period = (_text(group.directory, "cpu.max") or "max").partition(" ")
        else:
            quota = _text(group.directory, "cpu.cfs_quota_us") or "-1"
            period = _text(group.directory, "cpu.cfs_period_us") or ""
        if quota.isdecimal() and period.isdecimal() and int(period) > 0:
            cpus = int(quota) / int(period)
            tightest = (cpus, group.directory) if tightest is None or cpus < tightest[0] else tightest
    return tightest


_usable: tuple[float, int] | None = None


def usable_cpus() -> int:
    """Return the number of CPUs that this process can keep busy, at least 1. Kept for a few seconds.

    These are the CPUs that it may run on (cpuset, taskset), and no more than its quota.
    """
    global _usable
    now_s = time.monotonic()
    if _usable is None or now_s >= _usable[0]:
        quota = cpu_quota()
        most = allowed_cpus() if quota is None else min(allowed_cpus(), math.ceil(quota[0]))
        _usable = now_s + _CPUS_AGAIN_S, max(1, most)
    return _usable[1]


def allowed_cpus() -> int:
    """Return the number of CPUs that this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        return os.cpu_count() or 1


def groups(controller: str, proc: Path = Path("/proc")) -> Iterator[Group]:
    """Yield the visible cgroups with that controller's limits for this process, the innermost first."""
    try:
        mounts = (proc / "self/mountinfo").read_text(errors="surrogateescape").splitlines()
        memberships = (proc / "self/cgroup").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return
    for membership in memberships:
        hierarchy, _, rest = membership.partition(":")
        controllers, _, path = rest.partition(":")
        version = 2 if hierarchy == "0" and not controllers else 1
        if version == 1 and controller not in controllers.split(","):
            continue
        place = _mounted_at(mounts, version, controller)
        if place is None:
            continue
        mounted, root = place
        yield from _upwards(mounted, _below(path, root), version)


def _mounted_at(mounts: list[str], version: int, controller: str) -> tuple[Path, str] | None:
    """Find the mount point of a hierarchy, and the cgroup that is visible there."""
    for line in mounts:
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if len(fields) < 5 or len(kind) < 3:
            continue
        if version == 2:
            fits = kind[0] == "cgroup2"
        else:
            # The superblock's options name a v1 hierarchy's controllers.
            fits = kind[0] == "cgroup" and controller in kind[-1].split(",")
        if fits:
            return Path(_unescaped(fields[4])), _unescaped(fields[3])
    return None


def _unescaped(field: str) -> str:
    """Decode a field of proc(5)'s mountinfo, in which spaces and the like are octal."""
    head, *rest = field.split("\\")
    return head + "".join(chr(int(piece[:3], 8)) + piece[3:] for piece in rest)


def _below(path: str, root: str) -> PurePosixPath:
    """Return the place of a process's cgroup below the mounted cgroup.

    A cgroup that isn't visible from there counts as the top: the cgroup that is mounted into a container is
    the container's own, under any name outside.
    """
    inside, top = PurePosixPath(path), PurePosixPath(root)
    if ".." not in inside.parts:
        if inside.is_relative_to(top):
            return inside.relative_to(top)
        if ".." in top.parts:  # mounted from outside of this cgroup namespace: `/..` is the parent of `/`
            return inside.relative_to("/")
    return PurePosixPath()


def _upwards(mounted: Path, below: PurePosixPath, version: int) -> Iterator[Group]:
    for relative in (below, *below.parents):
        directory = mounted / relative
        if directory.is_dir():
            yield Group(version, directory)


def _memory_limit(group: Group) -> int | None:
    if group.version == 2:
        names = ("memory.max", "memory.high")  # above `high` everything is slowed down to a crawl
        limits = [_number(group.directory, name) for name in names]
    else:
        limits = [_number(group.directory, "memory.limit_in_bytes")]
        limits.append(_of_stat(group, "hierarchical_memory_limit"))  # also of parents that can't be seen
    return min((limit for limit in limits if limit is not None and limit < _UNLIMITED), default=None)


def _inactive_file(group: Group) -> int:
    """Return the memory that the kernel reclaims first: file pages that weren't used lately."""
    return _of_stat(group, "inactive_file" if group.version == 2 else "total_inactive_file") or 0


def _of_stat(group: Group, name: str) -> int | None:
    for line in (_text(group.directory, "memory.stat") or "").splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.isdecimal():
            return int(value)
    return None


def _number(directory: Path, name: str) -> int | None:
    text = _text(directory, name)
    return int(text) if text is not None and text.isdecimal() else None


def _text(directory: Path, name: str) -> str | None:
    try:
        return (directory / name).read_text(errors="replace").strip()
    except OSError:
        return None  # the top of a hierarchy has no limits; a controller may be turned off here


def _meminfo(proc: Path) -> dict[str, int]:
    try:
        lines = (proc / "meminfo").read_text().splitlines()
    except OSError:
        return {}
    sizes = {}
    for line in lines:
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdecimal():
            sizes[name] = int(words[0]) * KIB
    return sizes
