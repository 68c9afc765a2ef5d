"""Reads of the kernel's facts about another process, with clear errors when it refuses.

Source: proc(5); the permission is that of ptrace(2), "Ptrace access mode checking".
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ramet.errors import UnavailableError, VmmError

PTRACE_HINT: Final = (
    "run ramet as root, or make the template in the process that ran the instance; if Yama forbids it,"
    " `sudo sysctl kernel.yama.ptrace_scope=0`; `ramet doctor` says which"
)


@contextmanager
def process_errors(pid: int, action: str) -> Iterator[None]:
    """Turn errors of /proc and of ptrace-like calls inside into ramet's errors.

    `VmmError` when the process has ended, `UnavailableError` when the kernel or its permissions prevent the
    action.
    """
    try:
        yield
    except PermissionError as error:
        raise UnavailableError(
            f"can't {action} of process {pid}: {error.strerror}", hint=PTRACE_HINT
        ) from error
    except (FileNotFoundError, ProcessLookupError) as error:
        if not Path("/proc/self/maps").exists():
            raise UnavailableError(f"can't {action} of process {pid}: this needs Linux's /proc") from error
        if Path(f"/proc/{pid}").exists() and isinstance(error, FileNotFoundError):
            raise UnavailableError(
                f"can't {action} of process {pid}: {error.filename} isn't there"
            ) from error
        raise VmmError(f"can't {action} of process {pid}: it has ended") from error


def read_proc(pid: int, name: str, action: str) -> bytes:
    """Read /proc/PID/NAME, which is never empty for a process that still has memory.

    Raises `VmmError` when the process has ended (a zombie counts), else `UnavailableError`.
    """
    with process_errors(pid, action):
        content = Path(f"/proc/{pid}/{name}").read_bytes()
        if not content:
            raise ProcessLookupError
        return content
