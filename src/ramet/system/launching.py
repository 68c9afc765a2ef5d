"""The state of signals that a program starts with, independent of this process's state.

A process inherits its parent's blocked and ignored signals across execve(2). Both hurt: Firecracker stops its
vCPUs by a signal, and a shell whose SIGCHLD is ignored doesn't learn its children's exit statuses. ramet's
own processes set both right when they begin (`reset`). In another program's process ramet must not do that:
there a small program in between does it, and only where it is needed.
"""

from __future__ import annotations

import signal
from collections.abc import Collection, Iterable, Sequence

from ramet.programs import python


def reset() -> None:
    """Let this process's children have exit statuses, and signals arrive: for ramet's own programs alone."""
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def launched(
    argv: Sequence[str], *, blocked: Collection[int] = (), first: Iterable[str] = ()
) -> Sequence[str]:
    """Return the words that start `argv` with only `blocked` signals blocked, and SIGCHLD not ignored.

    They are `argv` itself if this thread is in that state already. `first` are Python statements that run
    before `argv` does, in the process that becomes it. Raises `UnavailableError` where such a process can't
    be had.
    """
    statements = list(first)
    masked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    if set(masked) - set(blocked) or signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        statements += [
            "import signal",
            "signal.signal(signal.SIGCHLD, signal.SIG_DFL)",
            f"signal.pthread_sigmask(signal.SIG_SETMASK, {sorted(map(int, blocked))})",
        ]
    if not statements:
        return argv
    code = "; ".join([*statements, "import os, sys", "os.execvp(sys.argv[1], sys.argv[1:])"])
    return [python(), "-I", "-S", "-c", code, *argv]
