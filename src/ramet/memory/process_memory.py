"""Another process's memory, read and written in large vectors.

Source: process_vm_readv(2); the permission is PTRACE_MODE_ATTACH_REALCREDS, ptrace(2).
"""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
import os
from array import array
from collections.abc import Sequence
from typing import Final, Literal

from ramet.errors import UnavailableError, VmmError, WrongStateError
from ramet.memory.procfs import PTRACE_HINT
from ramet.system.libc import libc

IOV_MAX: Final = 1024  # UIO_MAXIOV, linux/uio.h
_IOVEC_BYTES: Final = 2 * array("L").itemsize

_Verb = Literal["read", "write"]


def read_memory(pid: int, starts: Sequence[int], lengths: Sequence[int], into: int) -> None:
    """Copy ranges of a process's memory, without gaps, to the address `into` of this process.

    There has to be room for all ranges. Other threads run meanwhile. Raises `UnavailableError` when the
    kernel doesn't permit it, `VmmError` when the process has ended, `WrongStateError` when a range isn't
    mapped (any more); the content at `into` is undefined then.
    """
    _move("read", pid, starts, lengths, into)


def write_memory(pid: int, starts: Sequence[int], lengths: Sequence[int], from_: int) -> None:
    """Copy our own memory from the address `from_` on over ranges of a process's memory, one after the other.

    Where the process has mapped a file privately, the pages become its own. Raises as `read_memory` does; a
    part of the ranges may be written then.
    """
    _move("write", pid, starts, lengths, from_)


def address_of(buffer: bytearray | mmap.mmap) -> int:
    """Return the address of a writable buffer of this process, valid as long as the buffer exists."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def _move(verb: _Verb, pid: int, starts: Sequence[int], lengths: Sequence[int], ours: int) -> None:
    # struct iovec is an address and a length, both of a pointer's size; so is C's long on Linux.
    theirs = array("L", bytes(_IOVEC_BYTES * len(starts)))
    theirs[0::2], theirs[1::2] = array("L", starts), array("L", lengths)
    call = _call(verb)
    vector = theirs.buffer_info()[0]
    first = 0
    while first < len(starts):
        count = min(IOV_MAX, len(starts) - first)
        wanted = sum(theirs[2 * first + 1 : 2 * (first + count) : 2])
        local = array("L", (ours, wanted))
        moved = call(pid, local.buffer_info()[0], 1, vector + first * _IOVEC_BYTES, count, 0)
        if moved <= 0:
            raise _refused(verb, pid, theirs[2 * first], ctypes.get_errno() if moved else errno.EFAULT)
        ours += moved
        if moved == wanted:
            first += count
            continue
        # It stops at 2 GiB, and before a page that can't be had: asking again tells why.
        while moved >= theirs[2 * first + 1]:
            moved -= theirs[2 * first + 1]
            first += 1
        theirs[2 * first] += moved
        theirs[2 * first + 1] -= moved


@functools.cache
def _call(verb: _Verb) -> ctypes._NamedFuncPointer:
    try:
        call = libc().process_vm_readv if verb == "read" else libc().process_vm_writev
    except AttributeError:
        raise UnavailableError("another process's memory can be read on Linux only") from None
    call.restype = ctypes.c_ssize_t
    call.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong,
    ]  # fmt: skip
    return call


def _refused(verb: _Verb, pid: int, address: int, number: int) -> Exception:
    what = f"can't {verb} the memory of process {pid}"
    match number:
        case errno.EPERM | errno.EACCES:
            return UnavailableError(f"{what}: {os.strerror(number)}", hint=PTRACE_HINT)
        case errno.ESRCH:
            return VmmError(f"{what}: it has ended")
        case errno.EFAULT if verb == "read":
            return WrongStateError(
                f"process {pid} has no readable memory at {address:#x} any more: it wasn't paused throughout"
            )
        case errno.EFAULT:
            return WrongStateError(f"process {pid} has no memory to write to at {address:#x}")
        case _:
            return UnavailableError(f"{what}: {os.strerror(number)}")
