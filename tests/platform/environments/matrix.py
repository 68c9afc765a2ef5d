"""The environments: where the home lies, what surrounds the program, and what has to come of the job.

A row is one way in which people run such tools. `refused` are an exit code and words of the one error that
comes before anything is made, where the job can't be done.
"""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ramet.units import MIB
from tests.platform.environments import places, surroundings
from tests.platform.environments.surroundings import Surroundings, cgroup, given, unshare

Place = Callable[[Path], AbstractContextManager[Path]]
Around = Callable[[], AbstractContextManager[Surroundings]]


@dataclass(frozen=True)
class Refused:
    """The one clear error. `home_stays`: it is about instances, so an empty home may be made before it.
    `beside`: guests of another environment live in the home meanwhile.
    """

    code: int
    words: tuple[str, ...]
    home_stays: bool = False
    beside: bool = False


@dataclass(frozen=True)
class Environment:
    """A row of the matrix.

    `way` is how the job is done: by a program or by the commands. `codes` are the exit codes that commands
    may have; `hears` says that what they print can be read. `own_home` means
    that no other environment can use the home, so that no guest of another one can live there.
    """

    name: str
    place: Place = places.plain
    around: Around = lambda: given(Surroundings())
    way: Literal["program", "commands"] = "program"
    options: tuple[str, ...] = ()
    refused: Refused | None = None
    codes: tuple[int, ...] = (0,)
    stdout: str = "pipe"
    hears: bool = True
    own_home: bool = False


def around(found: Surroundings) -> Around:
    """Surroundings for which nothing has to be made."""
    return lambda: given(found)


def loop(kind: str, *options: str) -> Place:
    """A home on a filesystem of that kind."""
    return lambda directory: places.loop(kind, *options)


def named(name: bytes) -> Place:
    """A home below a directory with that name."""
    return functools.partial(places.named, name=name)


def variables(**changed: str | None) -> Around:
    """Other environment variables."""
    return around(Surroundings(environment=changed))


def only(**all_of_them: str) -> Around:
    """No other environment variables, no terminal, a session of its own: as cron starts programs."""
    return around(Surroundings(environment=all_of_them, only=True, session=True))


HOMES = (
    Environment("home on XFS", loop("xfs", "-q")),
    Environment("home on btrfs", loop("btrfs", "-q")),
    Environment("home on ext4 with 1 KiB blocks", loop("ext4", "-q", "-b", "1024")),
    Environment("home on an overlay", places.on_overlay),
    Environment("home on tmpfs", places.on_tmpfs),
    Environment("home on FUSE", places.on_fuse, refused=Refused(5, ("FUSE", "RAMET_HOME")), own_home=True),
    Environment("read-only home", places.read_only, refused=Refused(5, ("ead-only",)), own_home=True),
    Environment("home with spaces in its path", named(b"a home of 'mine', \"so\"")),
    Environment("home with a newline in its path", named(b"two\nlines"), way="commands"),
    Environment("home with a path that isn't UTF-8", named(b"h\xff\xfe"), way="commands"),
    Environment(
        "home with a path of 700 bytes",
        named(b"d" * 250 + b"/" + b"e" * 250 + b"/" + b"f" * 150),
        refused=Refused(5, ("bytes", "RAMET_HOME")),
    ),
)

VARIABLES = (
    Environment("no HOME", around=variables(HOME=None), way="commands"),
    Environment("Latin-1 locale", around=lambda: surroundings.locale("ISO-8859-1"), way="commands"),
    Environment(
        "C locale",
        around=variables(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", LANG=None),
        way="commands",
    ),
    Environment("TERM=dumb, a terminal", around=variables(TERM="dumb"), way="commands", stdout="terminal"),
    Environment(
        "cron: no terminal, hardly any environment",
        around=only(PATH="/usr/bin:/bin:/usr/sbin:/sbin", HOME="/root", RAMET_DRIVER="qemu"),
        way="commands",
    ),
)

LIMITS = (
    Environment("umask 077", around=around(surroundings.with_umask(0o077))),
    Environment("umask 000", around=around(surroundings.with_umask(0))),
    Environment("ulimit -n 256", around=around(surroundings.limited("NOFILE", 256))),
    Environment("ulimit -f 1024000", around=around(surroundings.limited("FSIZE", 1000 * MIB))),
    Environment(
        "ulimit -f 102400, less than the guest's RAM",
        around=around(surroundings.limited("FSIZE", 100 * MIB)),
        refused=Refused(1, ("ulimit -f", "RLIMIT_FSIZE"), home_stays=True),
    ),
    Environment("memory cgroup of 700 MiB", around=lambda: cgroup("memory", limit_in_bytes=700 * MIB)),
    Environment("pids cgroup of 100", around=lambda: cgroup("pids", max=100)),
    Environment(
        "pids cgroup of 6",
        around=lambda: cgroup("pids", max=6),
        refused=Refused(5, ("pids",), home_stays=True),
    ),
    Environment(
        "CPU cgroup of half a processor",
        around=lambda: cgroup("cpu", cfs_period_us=100_000, cfs_quota_us=50_000),
    ),
)

VERSION_2 = (
    Environment(
        "memory cgroup of 700 MiB, version 2",
        around=lambda: surroundings.cgroup2(memory__max=700 * MIB, memory__high=650 * MIB),
    ),
    Environment("pids cgroup of 100, version 2", around=lambda: surroundings.cgroup2(pids__max=100)),
    Environment(
        "CPU cgroup of half a processor, version 2",
        around=lambda: surroundings.cgroup2(cpu__max="50000 100000"),
    ),
)

NAMESPACES = (
    Environment(
        "another PID namespace, the same home",
        around=lambda: unshare("--pid", "--fork", "--mount-proc"),
    ),
    Environment(
        "another PID namespace, the old /proc, the same home",
        around=lambda: unshare("--pid", "--fork"),
        refused=Refused(5, ("/proc", "--mount-proc"), beside=True),
    ),
    Environment("another mount namespace, the same home", around=lambda: unshare("--mount")),
    Environment("a user namespace", around=lambda: unshare("--user", "--map-root-user")),
)

PROCESS = (
    Environment("SIGCHLD ignored", around=around(surroundings.ignoring(signal.SIGCHLD)), way="commands"),
    Environment("SIGCHLD ignored, a program", around=around(surroundings.ignoring(signal.SIGCHLD))),
    Environment(
        "SIGPIPE and SIGHUP ignored", around=around(surroundings.ignoring(signal.SIGPIPE, signal.SIGHUP))
    ),
    Environment("all signals blocked", around=around(surroundings.blocking_all())),
    Environment("systemd-run", around=surroundings.systemd_run, way="commands"),
    Environment("stdout full", way="commands", stdout="full", codes=(0, 1, 125), hears=False),
    Environment("stdout non-blocking", way="commands", stdout="non-blocking"),
    Environment("python -OO", around=around(Surroundings(options=("-OO",)))),
    Environment("python -X dev -W error", around=around(Surroundings(options=("-X", "dev", "-W", "error")))),
    Environment(
        "python -X dev -W error, commands",
        around=around(Surroundings(options=("-X", "dev", "-W", "error"))),
        way="commands",
    ),
    Environment("a terminal lost: setsid, stdin closed", around=around(surroundings.without_stdin())),
    *(
        Environment(f"Python {version}", around=functools.partial(surroundings.another_python, version))
        for version in ("3.11", "3.12", "3.13", "3.14")
    ),
)

PROGRAMS = tuple(
    Environment(name, options=("--by", way))
    for way, name in {
        "asyncio": "an asyncio program",
        "uvloop": "a uvloop program",
        "threads": "two threads",
        "fork-before": "a child of fork(2)",
        "fork-after": "a child of fork(2) beside its parent's Host",
        "multiprocessing-fork": "multiprocessing, fork",
        "multiprocessing-spawn": "multiprocessing, spawn",
        "multiprocessing-forkserver": "multiprocessing, forkserver",
    }.items()
)

MATRIX = (*HOMES, *VARIABLES, *LIMITS, *VERSION_2, *NAMESPACES, *PROCESS, *PROGRAMS)
