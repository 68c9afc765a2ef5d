"""Write a mem-file that holds what a process sees: its base, with the pages that it changed laid over.

The process is paused meanwhile, and whoever ends it does so after the new file is published. Nothing that is
published is written to (I1): the result is a new inode, filled under a temporary name.

Source: process_vm_readv(2); the permission is PTRACE_MODE_ATTACH_REALCREDS, ptrace(2).
"""

from __future__ import annotations

import bisect
import ctypes
import errno
import functools
import itertools
import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from ramet.errors import UnavailableError, UsageError, VmmError, WrongStateError
from ramet.host.files import (
    allocated_bytes,
    data_extents,
    duplicate_into,
    filesystem_errors,
    new_file,
    open_regular,
    publish,
    punch_hole,
    sync,
    temporary_beside,
    write_all,
)
from ramet.memory.mappings import FileIdentity, Mapping, find_mapping, identity_of
from ramet.memory.pagemap import Run, changed_runs, changed_runs_by_pagemap, changed_runs_by_scan
from ramet.memory.procfs import PTRACE_HINT
from ramet.units import MIB, PAGE_SIZE_BYTES

__all__ = [
    "FileIdentity",
    "Mapping",
    "MemFile",
    "Run",
    "changed_runs",
    "changed_runs_by_pagemap",
    "changed_runs_by_scan",
    "find_mapping",
    "identity_of",
    "write_mem_file",
]

_IOV_MAX: Final = 1024  # UIO_MAXIOV, linux/uio.h
_BUFFER_BYTES: Final = 2 * MIB
_ZERO_PAGE: Final = bytes(PAGE_SIZE_BYTES)

_Slice = tuple[int, int, int]
"""(host address, file offset, length in bytes): a run, or as much of one as fits in the buffer."""


class MemFile(msgspec.Struct, frozen=True):
    """A mem-file as it was just published."""

    size_bytes: int
    allocated_bytes: int
    changed_bytes: int
    """What differed from the base, pages of zeros included."""


def write_mem_file(base: Path, pid: int, runs: Sequence[Run], out: Path, *, mode: int = 0o600) -> MemFile:
    """Publish `out`: the content of `base` with the process's pages at `runs` over it. Zeros become holes.

    `base` is reflinked or sparsely copied and never written. `out` appears whole and durable, with `mode`; it
    may be the name of `base`, whose inode then lives on under its other names. `runs` come from
    `changed_runs`, and the process has been paused since.

    Raises `UnavailableError` when the kernel doesn't permit reading the process, `VmmError` when it has
    ended, `WrongStateError` when its memory isn't as listed any more, `UsageError` when a run lies outside
    `base`, `FilesystemError` for files. There is no `out` then, and nothing is left beside it.
    """
    temporary = temporary_beside(out)
    try:
        both = f"the memory of process {pid} to {out}"
        with filesystem_errors("write", both), open_regular(base) as origin, new_file(temporary) as copy:
            size = os.fstat(origin).st_size
            if any(run.file_offset + run.length_bytes > size for run in runs):
                raise UsageError(f"a changed page lies outside {base}, which is {size} bytes long")
            duplicate_into(origin, copy)
            _lay_over(copy, pid, runs)
            os.fchmod(copy, mode)
            sync(copy)
            made = MemFile(size, allocated_bytes(temporary), sum(run.length_bytes for run in runs))
        publish(temporary, out)
        return made
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _lay_over(file: int, pid: int, runs: Sequence[Run]) -> None:
    below = list(data_extents(file))
    for run in runs:
        if run.host_start is None:
            _clear(file, run.file_offset, run.length_bytes, below)
    # Reading straight into a mapping of the file can be quicker, but a full disk is then a bad address
    # without a reason, and pages of zeros have taken blocks before they are seen to be zeros.
    buffer = bytearray(_BUFFER_BYTES)
    view = memoryview(buffer)
    for batch in _batches(runs):
        _read_process(pid, [(host, length) for host, _, length in batch], buffer)
        position = 0
        for _, offset, length in batch:
            for is_zero, start, end in _stretches(buffer, position, position + length):
                at = offset + start - position
                if is_zero:
                    _clear(file, at, end - start, below)
                else:
                    write_all(file, view[start:end], at)
            position += length


def _batches(runs: Sequence[Run]) -> Iterator[list[_Slice]]:
    """The runs with something to read, cut and grouped: each group is one call and fits in the buffer."""
    batch: list[_Slice] = []
    room = _BUFFER_BYTES
    for run in runs:
        if run.host_start is None:
            continue
        done = 0
        while done < run.length_bytes:
            length = min(run.length_bytes - done, room)
            batch.append((run.host_start + done, run.file_offset + done, length))
            done += length
            room -= length
            if room == 0 or len(batch) == _IOV_MAX:
                yield batch
                batch, room = [], _BUFFER_BYTES
    if batch:
        yield batch


def _stretches(buffer: bytearray, start: int, end: int) -> Iterator[tuple[bool, int, int]]:
    """(all zeros?, start, end) of each longest stretch of pages that are alike in that."""
    begun, kind = start, buffer[start : start + PAGE_SIZE_BYTES] == _ZERO_PAGE
    for page in range(start + PAGE_SIZE_BYTES, end, PAGE_SIZE_BYTES):
        is_zero = buffer[page : page + PAGE_SIZE_BYTES] == _ZERO_PAGE
        if is_zero != kind:
            yield kind, begun, page
            begun, kind = page, is_zero
    yield kind, begun, end


def _clear(file: int, offset: int, length_bytes: int, below: list[tuple[int, int]]) -> None:
    """Make a range zeros where the base had data; where it had a hole, it is one already."""
    first = bisect.bisect_right(below, offset, key=lambda extent: extent[1])
    for start, end in below[first:]:
        if start >= offset + length_bytes:
            return
        start, end = max(start, offset), min(end, offset + length_bytes)
        if not punch_hole(file, start, end - start):
            for position in range(start, end, PAGE_SIZE_BYTES):
                write_all(file, _ZERO_PAGE[: end - position], position)


@functools.cache
def _process_vm_readv() -> ctypes._NamedFuncPointer:
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        call = libc.process_vm_readv
    except AttributeError:
        raise UnavailableError("reading another process's memory needs Linux") from None
    call.restype = ctypes.c_ssize_t
    call.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong,
    ]  # fmt: skip
    return call


def _read_process(pid: int, ranges: list[tuple[int, int]], buffer: bytearray) -> None:
    """Fill the buffer with the ranges, one behind the other: no more than IOV_MAX, no more than fits."""
    call = _process_vm_readv()
    target = (ctypes.c_char * len(buffer)).from_buffer(buffer)
    wanted = sum(length for _, length in ranges)
    done = 0
    while done < wanted:
        # struct iovec is an address and a length, both of a pointer's size; so is C's long on Linux.
        remote = array("L", itertools.chain.from_iterable(ranges))
        local = array("L", (ctypes.addressof(target) + done, wanted - done))
        taken = call(pid, local.buffer_info()[0], 1, remote.buffer_info()[0], len(ranges), 0)
        if taken <= 0:
            raise _unreadable(pid, ranges[0][0], ctypes.get_errno() if taken else errno.EFAULT)
        done += taken
        # A short read ends before a page that can't be had (process_vm_readv(2)); asking again tells why.
        if done < wanted:
            ranges = _rest(ranges, taken)


def _rest(ranges: list[tuple[int, int]], taken: int) -> list[tuple[int, int]]:
    """What is left of the ranges when their first `taken` bytes have been read."""
    for index, (start, length) in enumerate(ranges):
        if taken < length:
            return [(start + taken, length - taken), *ranges[index + 1 :]]
        taken -= length
    return []


def _unreadable(pid: int, address: int, number: int) -> Exception:
    why = os.strerror(number)
    match number:
        case errno.EPERM | errno.EACCES:
            return UnavailableError(f"can't read the memory of process {pid}: {why}", hint=PTRACE_HINT)
        case errno.ESRCH:
            return VmmError(f"can't read the memory of process {pid}: it has ended")
        case errno.EFAULT:
            return WrongStateError(
                f"process {pid} has no readable memory at {address:#x} any more: it wasn't paused throughout"
            )
        case _:
            return UnavailableError(f"can't read the memory of process {pid}: {why}")
