"""Start VMMs and find them again: by the tag in their environment, below a directory. Linux only."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ramet.errors import UnavailableError
from ramet.model.record import ProcessRef
from ramet.system import process_limit, rlimits
from ramet.system.launching import launched
from ramet.system.liveness import (
    adopt,
    require_own_proc,
)
from ramet.system.process_ref import (
    reference,
    reference_in_proc,
    stat_fields,
)
from ramet.system.process_search import proc_names

_START_CODE_FIELD = 26
OWNER_TAG = "RAMET_VMM"
"""The environment variable that says to which directory a process belongs."""
_TAG_PREFIX = f"{OWNER_TAG}=".encode()
_YAMA_SCOPE = Path("/proc/sys/kernel/yama/ptrace_scope")


def spawn(
    argv: Sequence[str],
    *,
    directory: Path,
    log: Path,
    errors: Path | None = None,
    fds: Sequence[int] = (),
    needs: rlimits.Needs = rlimits.Needs(),  # noqa: B008 - immutable
    tag: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> ProcessRef:
    """Start `argv` in `directory`, in a new session, its output appended to `log`, `fds` inherited.

    Standard error is appended to `errors` instead, if that is given.

    Its environment is this process's, and `environment`, and a tag: it says that ramet started the process,
    and that its directory is going to be called `tag`, by default `directory`; see `spawned_below`. The
    process outlives this one, and has its own limits (`rlimits`), which let it have what it `needs`. Raises
    `UnavailableError` when the program can't be executed, when a limit is too low for it, or when it couldn't
    be told from others afterwards; nothing runs then.
    """
    require_own_proc()
    limits = rlimits.settings(needs)
    outputs: list[int] = []
    try:
        outputs += [_appended(log)]
        outputs += [_appended(errors)] if errors is not None else []
    except OSError:
        _close(outputs)
        raise
    # A full log is to be an error to its writer and not its death. Python ignores SIGXFSZ, which
    # restore_signals=False lets the child inherit; a VMM with its own handler (Firecracker's ends it)
    # doesn't get to run it, because a mask is inherited, too.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGXFSZ})
    try:
        child = subprocess.Popen(
            launched(argv, blocked={signal.SIGXFSZ}, first=[*_launcher(), *rlimits.statements(limits)]),
            cwd=directory,
            env={
                **os.environb,
                **{name.encode(): value.encode() for name, value in (environment or {}).items()},
                OWNER_TAG.encode(): os.fsencode(tag or directory),
            },
            stdin=subprocess.DEVNULL,
            stdout=outputs[0],
            stderr=outputs[-1],
            pass_fds=fds,
            start_new_session=True,
            restore_signals=False,
            umask=rlimits.UMASK,
        )
    except OSError as error:
        if (reached := process_limit.reached_by(error, starting=True)) is not None:
            raise reached from error
        raise UnavailableError(
            f"{argv[0]} can't be executed: {error.strerror}",
            hint="`ramet doctor` says what this machine lacks",
        ) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        _close(outputs)
    # It is waited for by pidfd; Popen must not complain that it outlives its object.
    child.returncode = 0
    try:
        process = reference(child.pid)
        rlimits.impose(child.pid, limits)  # it wasn't waited for: the pid isn't reused
    except ProcessLookupError as error:
        # Where SIGCHLD is ignored, a process that has ended leaves no zombie.
        raise UnavailableError(
            f"{argv[0]} ended as soon as it was started", hint=f"{log} may say why"
        ) from error
    except BaseException:
        # No descriptor is left to read /proc with, or it runs as another user (a set-uid wrapper), whose
        # limits aren't ours to set. Nobody would know of it.
        with suppress(OSError):  # not ours to end either
            os.kill(child.pid, signal.SIGKILL)
            os.waitpid(child.pid, 0)
        raise
    adopt(process)
    return process


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _appended(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def _launcher() -> list[str]:
    """Return Python statements that let later ramet processes, which aren't its parent, read a VMM's memory.

    Where Yama restricts ptrace to descendants (`kernel.yama.ptrace_scope` 1) the VMM-to-be says of itself
    that others of its user may (PR_SET_PTRACER, prctl(2)), which lasts across execve. Elsewhere nothing is
    needed, and nothing is paid.
    """
    try:
        restricted = _YAMA_SCOPE.read_text().strip() == "1"
    except OSError:
        return []
    if not restricted or os.geteuid() == 0:
        return []
    return ["import ctypes", "ctypes.CDLL(None).prctl(0x59616d61, ctypes.c_ulong(-1), 0, 0, 0)"]


class _Tagged(NamedTuple):
    """A living process that `spawn` started, for any home."""

    process: ProcessRef
    tag: Path
    works_in: tuple[int, int]
    """Device and inode of its working directory: the same in every mount namespace, and after a rename."""
    is_deleted: bool


def spawned_below(*directories: Path) -> dict[Path, list[ProcessRef]]:
    """Find the living processes that `spawn` started and that work in subdirectories of `directories`.

    The result is by the directory in which they work now. Every process of the machine is looked at, so ask
    once for many directories.

    The tag in their environment (proc(5), `/proc/PID/environ`) tells them from a shell that was opened there.
    Where they work is told by device and inode: a path may mean another directory in another mount namespace,
    or by now. For a process whose directory has been removed the tag says where that was, on this very
    filesystem.
    """
    tagged = list(_tagged())
    if not tagged:
        return {}
    # Names after processes: what a rename has moved meanwhile is found under its new name, or not at all.
    places: dict[tuple[int, int], Path] = {}
    devices: dict[Path, int] = {}
    for parent in directories:
        with suppress(FileNotFoundError), os.scandir(parent) as entries:
            devices[parent] = parent.stat().st_dev
            for entry in entries:
                with suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    places[status.st_dev, status.st_ino] = Path(entry.path)
    spawned: dict[Path, list[ProcessRef]] = {}
    for vmm in tagged:
        place = places.get(vmm.works_in)
        if place is None and vmm.is_deleted and devices.get(vmm.tag.parent) == vmm.works_in[0]:
            place = vmm.tag
        if place is not None:
            spawned.setdefault(place, []).append(vmm.process)
    return spawned


def spawned_in(directory: Path) -> list[ProcessRef]:
    """Find the living processes that `spawn` started and that work in `directory`.

    Unrecorded processes and another ramet's are included.
    """
    return spawned_below(directory.parent).get(directory, [])


def _tagged() -> Iterator[_Tagged]:
    for name in proc_names():
        try:
            tags = [
                variable for variable in _environment(name).split(b"\0") if variable.startswith(_TAG_PREFIX)
            ]
            if tags:
                working = f"/proc/{name}/cwd"
                status = os.stat(working)  # noqa: PTH116 - of many processes
                yield _Tagged(
                    reference_in_proc(name),
                    Path(os.fsdecode(tags[0][len(_TAG_PREFIX) :])),
                    (status.st_dev, status.st_ino),
                    os.readlink(working).endswith(" (deleted)"),  # noqa: PTH115 - text, no path
                )
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # gone, or another user's


def _environment(name: str) -> bytes:
    """Return the environment of a process; empty when it has none.

    In the middle of execve(2), which Popen doesn't wait for the end of, a process has none for a moment, and
    no code either; that is waited for, at most 0.1 s. Raises `OSError` when the process is gone, a kernel
    thread, or another user's.
    """
    place = Path(f"/proc/{name}")
    for _ in range(100):
        complete = int(stat_fields(name)[_START_CODE_FIELD - 3]) != 0
        if (environment := (place / "environ").read_bytes()) or complete:
            break
        (place / "exe").readlink()
        time.sleep(0.001)
    return environment
