"""What lies between a shell and `ramet`: variables, limits, control groups, namespaces, signals, descriptors.

A `Surroundings` says how a program is started. Those that make something (a control group, a locale) are
context managers, which take it away again.
"""

from __future__ import annotations

import fcntl
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.copied_packages import ROOT

LIMIT_S = 150


@dataclass(frozen=True)
class Surroundings:
    """How to start a program.

    `prefix` are words before its own; `environment` changes this one, where None takes a variable away;
    `only` means that there is nothing else in it. `before` is called in the child. `options` are the
    interpreter's.
    """

    prefix: Sequence[str] = ()
    environment: Mapping[str, str | None] = field(default_factory=dict)
    only: bool = False
    before: Callable[[], None] | None = None
    options: Sequence[str] = ()
    python: str = sys.executable
    stdin: int = subprocess.DEVNULL
    session: bool = False

    def variables(self) -> dict[str, str]:
        """The environment of the program."""
        found = {} if self.only else dict(os.environ)
        for name, value in self.environment.items():
            if value is None:
                found.pop(name, None)
            else:
                found[name] = value
        return found

    def run(
        self, *words: str | Path, stdout: int = subprocess.PIPE, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run Python with `words`, to its end, whatever the exit code.

        When it takes longer than `LIMIT_S`, it and what it has started in its group are killed, and
        `subprocess.TimeoutExpired` is raised.
        """
        command = [*self.prefix, self.python, *self.options, *words]
        with subprocess.Popen(
            command,
            env=self.variables() | dict(environment or {}),
            stdin=self.stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
            preexec_fn=self.before,
            start_new_session=self.session,
            process_group=None if self.session else 0,
        ) as process:
            try:
                out, err = process.communicate(timeout=LIMIT_S)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
        return subprocess.CompletedProcess(command, process.returncode, out, err)


@contextmanager
def given(surroundings: Surroundings) -> Iterator[Surroundings]:
    """Nothing has to be made for them."""
    yield surroundings


def limited(name: str, most: int) -> Surroundings:
    """With a resource limit (getrlimit(2)), soft and hard. root may raise it."""
    number = getattr(resource, f"RLIMIT_{name}")

    def limit() -> None:
        resource.setrlimit(number, (most, most))

    return Surroundings(before=limit)


def ignoring(*numbers: signal.Signals) -> Surroundings:
    """With signals ignored, as some shells and supervisors leave them to their children."""

    def ignore() -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)

    return Surroundings(before=ignore)


def blocking_all() -> Surroundings:
    """With every signal blocked that can be."""

    def block() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())

    return Surroundings(before=block)


def with_umask(mask: int) -> Surroundings:
    """With another umask."""

    def mask_files() -> None:
        os.umask(mask)

    return Surroundings(before=mask_files)


def without_stdin() -> Surroundings:
    """In a session without a terminal, its standard input closed."""

    return Surroundings(before=lambda: os.close(0), session=True)


@contextmanager
def systemd_run() -> Iterator[Surroundings]:
    """As a transient service, where systemd is process 1."""
    if Path("/proc/1/comm").read_text().strip() != "systemd":
        pytest.skip("process 1 isn't systemd")
    words = ("systemd-run", "--quiet", "--wait", "--pipe", "--collect")
    passed = [f"--setenv={name}" for name in ("PATH", "HOME", "RAMET_HOME", "RAMET_DRIVER")]
    yield Surroundings(prefix=(*words, *passed, "--"))


def unshared(*options: str) -> Surroundings:
    """In namespaces of its own, by unshare(1)."""
    tried = subprocess.run(
        ["unshare", *options, "true"], capture_output=True, text=True, timeout=30, check=False
    )
    if tried.returncode:
        pytest.skip(f"unshare {' '.join(options)}: {tried.stderr.strip()}")
    return Surroundings(prefix=("unshare", *options))


@contextmanager
def unshare(*options: str) -> Iterator[Surroundings]:
    """As `unshared`, tried only when the test is run."""
    yield unshared(*options)


_CGROUPS = Path("/sys/fs/cgroup")


@contextmanager
def cgroup(controller: str, **files: int | str) -> Iterator[Surroundings]:
    """In a control group (version 1) of its own, below this process's.

    `files` are names without the controller's, with `__` for a dot.
    """
    own = _own_cgroup(controller)
    if own is None or not os.access(own, os.W_OK):
        pytest.skip(f"no control group of {controller} (version 1) can be made here")
    values = {f"{controller}.{name.replace('__', '.')}": value for name, value in files.items()}
    with _group(own, values) as made:
        yield made


@contextmanager
def cgroup2(**files: int | str) -> Iterator[Surroundings]:
    """In a control group of version 2, below the root. `files` as in `memory__max`."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    roots = [Path(fields[1]) for fields in mounts if fields[2] == "cgroup2"]
    wanted = {name.partition("__")[0] for name in files}
    have = set((roots[0] / "cgroup.controllers").read_text().split()) if roots else set()
    if not wanted <= have:
        pytest.skip(f"no control groups of version 2 with {', '.join(sorted(wanted - have))} here")
    for controller in wanted:
        (roots[0] / "cgroup.subtree_control").write_text(f"+{controller}")
    with _group(roots[0], {name.replace("__", "."): value for name, value in files.items()}) as made:
        yield made


@contextmanager
def _group(above: Path, files: Mapping[str, int | str]) -> Iterator[Surroundings]:
    """A control group below `above`; what a failed test has left in it is killed with it."""
    group = Path(tempfile.mkdtemp(prefix="ramet-test-", dir=above))
    try:
        for name, value in files.items():
            (group / name).write_text(str(value))
        procs = str(group / "cgroup.procs")

        def enter() -> None:
            with open(procs, "w") as file:  # noqa: PTH123 - between fork and exec, as little as can be
                file.write(str(os.getpid()))

        yield Surroundings(before=enter)
    finally:
        for _ in range(100):
            left = (group / "cgroup.procs").read_text().split()
            if not left:
                break
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            time.sleep(0.1)  # a control group tells nobody of its last process
        group.rmdir()


def _own_cgroup(controller: str) -> Path | None:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if controller in names.split(","):
            place = _CGROUPS / controller / path.lstrip("/")
            return place if place.is_dir() else _CGROUPS / controller
    return None


@contextmanager
def locale(charmap: str) -> Iterator[Surroundings]:
    """With a German locale in this character set, made for the test."""
    if not shutil.which("localedef"):
        pytest.skip("localedef isn't installed (package locales)")
    with tempfile.TemporaryDirectory() as directory:
        name = f"de_DE.{charmap}"
        made = subprocess.run(
            ["localedef", "-i", "de_DE", "-f", charmap, f"{directory}/{name}"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if not Path(directory, name).is_dir():
            pytest.skip(f"no locale with {charmap} can be made here: {made.stderr.strip()}")
        yield Surroundings(environment={"LOCPATH": directory, "LC_ALL": name, "LANG": None, "LANGUAGE": None})


@contextmanager
def another_python(version: str) -> Iterator[Surroundings]:
    """With another release of Python, if it is there: ramet and its dependencies are installed for it, into a
    directory of the test's own, in the versions of `requirements.lock`.
    """
    program = _find_python(version)
    if program is None:
        pytest.skip(f"there is no Python {version} here")
    with tempfile.TemporaryDirectory(prefix="ramet-python-") as directory:
        python = Path(directory, "venv", "bin", "python")
        lock = ROOT / "requirements.lock"
        words = ("install", "--quiet", "--no-input", "--disable-pip-version-check", "--only-binary", ":all:")
        try:
            subprocess.run([program, "-m", "venv", python.parent.parent], check=True, timeout=120)
            subprocess.run(
                [python, "-m", "pip", *words, "--require-hashes", "-r", lock],
                check=True,
                capture_output=True,
                text=True,
                timeout=300,
            )
        except (subprocess.SubprocessError, OSError) as error:
            pytest.skip(f"ramet's dependencies can't be installed for Python {version}: {error}")
        yield Surroundings(
            python=str(python), environment={"PYTHONPATH": str(ROOT / "src")}, options=("-W", "error")
        )


def _find_python(version: str) -> str | None:
    """On `PATH`, or one that pyenv has."""
    found = [f"python{version}"]
    if pyenv := shutil.which("pyenv"):
        root = subprocess.run([pyenv, "root"], capture_output=True, text=True, timeout=30, check=False)
        releases = Path(root.stdout.strip(), "versions").glob(f"{version}.*/bin/python")
        found += [str(release) for release in sorted(releases)]
    for program in found:
        try:
            tried = subprocess.run([program, "-c", ""], capture_output=True, timeout=30, check=False)
        except OSError:
            continue
        if tried.returncode == 0:
            return program
    return None


def slow_pipe() -> tuple[int, int]:
    """A pipe whose writing end doesn't block and holds a page: a program in Node has such a one."""
    read, write = os.pipe()
    fcntl.fcntl(write, 1031, 4096)  # F_SETPIPE_SZ (fcntl(2))
    os.set_blocking(write, False)
    return read, write
