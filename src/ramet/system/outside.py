"""Runs of programs that aren't ramet's, to their end: qemu-img, mke2fs, a VMM's `--version`. Only here.

A program that runs here is bounded in time and in its kept output, reads what it is given or nothing, speaks
English (so that its texts mean the same under every locale) and has its own process group, with which it is
killed. Its exit status may be unknown: where SIGCHLD is ignored, or other code waits for every child of this
process, the kernel gives the status to nobody (wait(2)). So callers judge by the result, and by a status only
where it says "failed".
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import anyio
import anyio.lowlevel

from ramet.system import launching, spawn, threads
from ramet.units import MIB

_READ_BYTES: Final = 64 * 1024
_END_LIMIT_S: Final = 5.0


class Outcome(NamedTuple):
    """The end of a program.

    `status` is its exit code, or minus the number of the signal that killed it; None if the kernel didn't
    tell. `stdout` keeps the beginning, `stderr` the end.
    """

    status: int | None
    stdout: bytes
    stderr: bytes

    @property
    def failed(self) -> bool:
        """True if the program is known to have failed. False doesn't mean that it did what it was to do."""
        return self.status not in (0, None)

    @property
    def last_words(self) -> str:
        """The last two lines of its errors, at most 300 characters."""
        lines = self.stderr.decode(errors="replace").strip().splitlines()
        return " / ".join(lines[-2:])[-300:]


def run(
    argv: Sequence[str],
    *,
    limit_s: float,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    most_bytes: int = MIB,
    pass_fds: Sequence[int] = (),
    stop: int | None = None,
    given: bytes | None = None,
) -> Outcome:
    """Run a program to its end. Processes that it started and left running are left alone.

    `environment` is this process's unless given; `given` is the program's standard input.
    When `stop`, a descriptor, becomes readable, the program is killed. Raises `TimeoutError` when it takes
    longer than `limit_s`, after it was killed with its group; another `OSError`, which names it, when it
    can't be executed; `UnavailableError` as `launching.launched`.
    """
    variables = dict(os.environ if environment is None else environment)
    variables.pop(spawn.OWNER_TAG, None)  # it is no VMM, and mustn't be taken for one
    with _input(given) as stdin:
        child = subprocess.Popen(
            launching.launched(argv),
            cwd=cwd,
            env={**variables, "LC_ALL": "C", "LANGUAGE": ""},
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=tuple(pass_fds),
            start_new_session=True,
        )
    with ExitStack() as closing:
        assert child.stdout is not None
        assert child.stderr is not None
        streams = [closing.enter_context(child.stdout).fileno(), closing.enter_context(child.stderr).fileno()]
        try:
            pidfd = os.pidfd_open(child.pid)
        except ProcessLookupError:
            pidfd = None  # it has ended, and the kernel has thrown its status away
        except BaseException:
            _kill(child, None)
            raise
        if pidfd is not None:
            closing.callback(os.close, pidfd)
        try:
            out, errors = _collect(streams, pidfd, stop, time.monotonic() + limit_s, most_bytes)
        except TimeoutError:
            _kill(child, pidfd)
            raise TimeoutError(f"{argv[0]} didn't end within {limit_s:g} s") from None
        except BaseException:
            _kill(child, pidfd)
            raise
        return Outcome(_status(child, pidfd), bytes(out), bytes(errors))


@contextmanager
def _input(given: bytes | None) -> Iterator[int]:
    """Yield a descriptor to read `given` from: a file in memory, so that nobody has to feed a pipe."""
    if given is None:
        yield subprocess.DEVNULL
        return
    descriptor = os.memfd_create("stdin", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, given)
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


async def run_async(
    argv: Sequence[str], *, limit_s: float, most_bytes: int = MIB, given: bytes | None = None
) -> Outcome:
    """Run a program as `run` does, beside the event loop.

    A cancellation kills the program before it returns.
    """
    stop = os.eventfd(0, os.EFD_CLOEXEC)
    work = partial(run, argv, limit_s=limit_s, most_bytes=most_bytes, stop=stop, given=given)
    outcome: Outcome | Exception
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_tell_when_cancelled, stop)
            try:
                outcome = await threads.run(work)
            except Exception as error:
                outcome = error
            tasks.cancel_scope.cancel()
    finally:
        os.close(stop)
    await anyio.lowlevel.checkpoint_if_cancelled()
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


async def _tell_when_cancelled(stop: int) -> None:
    try:
        await anyio.sleep_forever()
    finally:
        os.eventfd_write(stop, 1)


def _collect(
    streams: Sequence[int], pidfd: int | None, stop: int | None, deadline: float, most_bytes: int
) -> tuple[bytearray, bytearray]:
    """Return a program's output until its end.

    Its pipes may stay open longer, in processes that it started.
    """
    kept = (bytearray(), bytearray())
    poll = select.poll()
    for descriptor in (*streams, pidfd, stop):
        if descriptor is not None:
            poll.register(descriptor, select.POLLIN)
    for descriptor in streams:
        os.set_blocking(descriptor, False)  # our ends of our pipes
    ended = pidfd is None
    while not ended:
        left_s = deadline - time.monotonic()
        ready = {descriptor for descriptor, _ in poll.poll(max(0.0, left_s) * 1000)} if left_s > 0 else set()
        if not ready:
            raise TimeoutError
        if stop in ready:
            raise InterruptedError
        ended = pidfd in ready
        for descriptor in ready.intersection(streams):
            if not _read(descriptor, kept, streams.index(descriptor), most_bytes):
                poll.unregister(descriptor)
    for which, descriptor in enumerate(streams):
        while _read(descriptor, kept, which, most_bytes):
            pass
    return kept


def _read(descriptor: int, kept: tuple[bytearray, bytearray], which: int, most_bytes: int) -> bool:
    """Read once. False at the end, or when there is nothing now."""
    try:
        data = os.read(descriptor, _READ_BYTES)
    except BlockingIOError:
        return False
    stream = kept[which]
    stream += data
    if which == 0:
        del stream[most_bytes:]
    else:
        del stream[: max(0, len(stream) - most_bytes)]
    return bool(data)


def _status(child: subprocess.Popen[bytes], pidfd: int | None) -> int | None:
    """Collect the exit status of a program that has ended, if the kernel has kept it."""
    child.returncode = 0  # Popen must not wait for it, too
    if pidfd is None:
        return None
    try:
        result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    except ChildProcessError:
        return None
    if result is None:
        return None
    return result.si_status if result.si_code == os.CLD_EXITED else -result.si_status


def _kill(child: subprocess.Popen[bytes], pidfd: int | None) -> None:
    """Kill a program and its group. Until the program is waited for, the group's number is its own."""
    with suppress(ProcessLookupError, PermissionError):  # nothing of it is left that we may end
        os.killpg(child.pid, signal.SIGKILL)
    if pidfd is not None:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.poll(_END_LIMIT_S * 1000)
    child.returncode = 0
    with suppress(ChildProcessError):
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG)
