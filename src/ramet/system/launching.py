"""The state of signals that a program starts with, whatever state this process is in.

A process inherits its parent's blocked and ignored signals across execve(2). Both hurt: Firecracker stops its
vCPUs by a signal, and a shell whose SIGCHLD is ignored doesn't learn its children's exit statuses. ramet's
own processes set both right when they begin (`reset`). In somebody else's process that is not ramet's to do:
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
    """The words that start `argv` with no signal blocked but `blocked`, and SIGCHLD not ignored.

    `argv` itself where this thread is so already. `first` are Python statements that run before `argv` does,
    in the process that becomes it. Raises `UnavailableError` where such a process can't be had.
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
