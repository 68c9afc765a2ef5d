"""The check that this user may read the memory of VMMs, which making a template takes.

Sources: process_vm_readv(2); ptrace(2), "Ptrace access mode checking"; the kernel's admin-guide/LSM/Yama.rst.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ramet.system import outside
from ramet.system.doctor.finding import Finding
from ramet.system.libc import last_error, libc

_CAP_SYS_PTRACE: Final = 19  # linux/capability.h
_YAMA: Final = Path("/proc/sys/kernel/yama/ptrace_scope")
_READ_LIMIT_S: Final = 1.0


def ptrace_finding(yama: Path = _YAMA) -> Finding:
    """Check that this user may read the memory of a VMM that an earlier ramet process has started.

    Tried on a real process that isn't this process's descendant any more, as a VMM after `run -d` is. Without
    the permission an instance becomes a template only in the process that ran it, or not at all.
    """
    scope = yama.read_text().strip() if yama.exists() else None
    under = f"Yama's ptrace_scope is {scope}" if scope is not None else "the kernel has no Yama"
    who = "root" if os.geteuid() == 0 else "this user"
    capability = "with" if _privileged() else "without"
    under = f"{capability} CAP_SYS_PTRACE; {under}"
    try:
        with _orphan() as pid:
            _read_a_word(pid)
    except OSError as error:
        why = error.strerror or str(error)
    else:
        return Finding("ptrace", True, f"{who} can read the memory of VMMs ({under})")
    if scope == "1":
        fact = f"only the process that started a VMM can read its memory ({under})"
        advice = (
            "so that `ramet template` works in a later process: `sudo sysctl kernel.yama.ptrace_scope=0`,"
            " or run as root; in Python, `run` and `template` in one process work already"
        )
        return Finding("ptrace", None, fact, advice)
    advice = "run ramet as root (CAP_SYS_PTRACE)"
    if scope == "2":
        advice = f"`sudo sysctl kernel.yama.ptrace_scope=0`, or {advice}"
    elif scope == "3":
        advice = "set kernel.yama.ptrace_scope=0 in /etc/sysctl.d and reboot: 3 can't be lowered"
    return Finding("ptrace", False, f"{who} can't read the memory of VMMs: {why} ({under})", advice)


def _privileged() -> bool:
    status = Path("/proc/self/status").read_text()
    effective = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(effective, 16) >> _CAP_SYS_PTRACE & 1)


@contextmanager
def _orphan() -> Iterator[int]:
    """Yield a process of this user whose parent is now init, or a subreaper.

    It ends with the block, or with this process.
    """
    reading, writing = os.pipe()
    try:
        started = outside.run(
            ["/bin/sh", "-c", 'cat "$1" >/dev/null 2>&1 & echo $!', "sh", f"/dev/fd/{reading}"],
            pass_fds=[reading],
            limit_s=_READ_LIMIT_S * 5,
        )
        if not started.stdout.strip().isdigit():
            raise OSError(f"the trial can't be made: {started.last_words or 'sh says nothing'}")
        yield int(started.stdout)
    finally:
        os.close(reading)
        os.close(writing)


def _read_a_word(pid: int) -> None:
    """Read from its stack by the very call that makes a template. Raises `OSError`."""
    deadline = time.monotonic() + _READ_LIMIT_S
    while time.monotonic() < deadline:
        # Before exec and in the middle of it, a process isn't yet what a VMM would be.
        if Path(f"/proc/{pid}/comm").read_text() == "cat\n" and (top := _top_of_stack(pid)) is not None:
            break
        time.sleep(0.002)
    else:
        raise OSError("it showed no memory")
    word = ctypes.create_string_buffer(8)
    local, remote = _Iovec(ctypes.addressof(word), len(word)), _Iovec(top - len(word), len(word))
    if libc().process_vm_readv(pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0) != len(word):
        raise last_error()


class _Iovec(ctypes.Structure):
    """struct iovec, readv(2)."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def _top_of_stack(pid: int) -> int | None:
    for line in Path(f"/proc/{pid}/maps").read_bytes().splitlines():
        if line.endswith(b"[stack]"):
            return int(line.split()[0].partition(b"-")[2], 16)
    return None
