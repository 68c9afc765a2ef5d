"""A guest that is paused for a capture is resumed also when the ramet that captures it dies.

Before the pause a small process is started that holds one end of a pipe. The kernel closes the other when
this process ends, in any way; unless `done` came through it first, the small process resumes the guest. See
`pause_resumer`.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import anyio
import msgspec

from ramet.errors import UnavailableError
from ramet.model.record import ProcessRef
from ramet.system import (
    forked,
    liveness,
    own_programs,
    pause_resumer,
    process_limit,
    process_ref,
    processes,
    spawn,
)

_END_LIMIT_S: Final = 2.0


class ResumeSteps(msgspec.Struct, frozen=True):
    """The messages by which a VMM resumes its guest.

    They go over the UNIX socket `socket_name` in its directory: for each of `steps` a text to send and a
    regular expression that its answer matches. `runs`, if not empty, matches only the answer of a VMM whose
    guest runs: no further steps are taken then.
    """

    socket_name: str
    steps: tuple[tuple[str, str], ...]
    runs: str = ""


@asynccontextmanager
async def resume_on_death(
    directory: Path, resume: ResumeSteps, *, hold: Sequence[int] = ()
) -> AsyncIterator[ProcessRef]:
    """Have the guest of the VMM in `directory` resumed if this process dies inside.

    Yields the process that would do it. Leaving in any way tells it that it isn't needed, and waits until it
    has ended: the caller has resumed the guest, or means it to stay paused. `hold` are descriptors that it
    keeps open until it has ended, such as that of a lock (`locks.file_lock`), so that no other process comes
    between. Raises `UnavailableError` when it can't be started; nothing runs then.
    """
    theirs, ours = os.pipe2(os.O_CLOEXEC)
    # A child that is forked inside would hold it open, too, and hide the death of this process.
    forked.keep_from_children(ours)
    try:
        process = _start(directory, resume, theirs, hold)
    except BaseException:
        forked.close(ours)
        raise
    finally:
        os.close(theirs)
    try:
        yield process
    finally:
        try:
            if forked.is_ours(ours):
                os.write(ours, pause_resumer.DONE)
        except BrokenPipeError:
            pass  # another process ended it
        finally:
            forked.close(ours)
        with anyio.CancelScope(shield=True):
            if not await processes.wait_ended(process, timeout_s=_END_LIMIT_S):
                await processes.kill(process)


def _start(directory: Path, resume: ResumeSteps, pipe: int, hold: Sequence[int]) -> ProcessRef:
    words = [*own_programs.alone(pause_resumer), str(pipe), resume.socket_name, resume.runs]
    for send, answer in resume.steps:
        words += [send, answer]
    try:
        child = subprocess.Popen(
            words,
            cwd=directory,
            # It is no VMM, and mustn't be taken for one.
            env={name: value for name, value in os.environ.items() if name != spawn.OWNER_TAG},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(pipe, *hold),
            start_new_session=True,  # a Ctrl-C that ends this process isn't for that one
        )
    except OSError as error:
        if (reached := process_limit.reached_by(error, starting=True)) is not None:
            raise reached from error
        raise UnavailableError(
            f"no process can be started that would resume the guest: {error.strerror}"
        ) from error
    # It is waited for by pidfd; Popen must not complain that it outlives its object.
    child.returncode = 0
    process = process_ref.reference(child.pid)
    liveness.adopt(process)
    return process
