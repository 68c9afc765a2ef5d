"""A real process that maps a mem-file privately, as a VMM does, and changes its pages when told to."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

import pytest

from ramet.units import PAGE_SIZE_BYTES

needs_linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="what a process changed is read out of Linux's /proc"
)

_PROGRAM: Final = r"""
import ctypes, mmap, sys
shared = sys.argv[2] == "shared"
file = open(sys.argv[1], "r+b" if shared else "rb")
memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_WRITE if shared else mmap.ACCESS_COPY)
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
print(hex(base), flush=True)
for line in sys.stdin:
    verb, first, length, value = line.split()
    first, length, value = int(first), int(length), int(value)
    if verb == "write":
        memory[first:first + length] = bytes([value]) * length
    elif verb == "scatter":
        for page in range(length):
            memory[first + page * value:first + page * value + 1] = bytes([page % 255 + 1])
    elif verb == "read":
        sum(memory[first:first + length:mmap.PAGESIZE])
    elif verb == "cover":
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x10
        assert libc.mmap(base + first, length, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0) == base + first
    elif verb == "overlay":
        flags = mmap.MAP_PRIVATE | 0x10
        with open("/proc/self/exe", "rb") as other:
            assert libc.mmap(base + first, length, mmap.PROT_READ, flags, other.fileno(), 0) == base + first
    elif verb == "shift":
        flags = mmap.MAP_PRIVATE | 0x10
        assert libc.mmap(base + first, length, mmap.PROT_READ, flags, file.fileno(), value) == base + first
    elif verb == "unmap":
        assert libc.munmap(base + first, length) == 0
    elif verb == "pageout":
        assert libc.madvise(base + first, length, 21) == 0
    elif verb == "discard":
        assert libc.madvise(base + first, length, mmap.MADV_DONTNEED) == 0
    elif verb == "show":
        sys.stdout.buffer.write(ctypes.string_at(base + first, length))
    print("" if verb == "show" else "done", end="" if verb == "show" else "\n", flush=True)
"""


class MappingProcess:
    """The process and its pipes. Each call returns when the process has done it, and so is idle again."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.pid = process.pid
        self.process = process
        assert process.stdin is not None
        assert process.stdout is not None
        self._orders: IO[bytes] = process.stdin
        self._answers: IO[bytes] = process.stdout
        self.address = int(self._answers.readline(), 16)

    def tell(self, verb: str, first: int, length: int, value: int = 0) -> None:
        """Have `length` bytes from offset `first` changed (`scatter`: pages, `value` bytes apart)."""
        self._orders.write(f"{verb} {first} {length} {value}\n".encode())
        self._orders.flush()
        if verb != "show":
            assert self._answers.readline() == b"done\n"

    def write_page(self, page: int, value: int, pages: int = 1) -> None:
        self.tell("write", page * PAGE_SIZE_BYTES, pages * PAGE_SIZE_BYTES, value)

    def view(self, first: int, length: int) -> bytes:
        """What the process itself sees."""
        self.tell("show", first, length)
        return self._answers.read(length)

    def end(self) -> None:
        """Kill it and wait: from then on there is no such process."""
        self.process.kill()
        self.process.wait()


@contextmanager
def mapping_process(mem_file: Path, kind: str = "private") -> Iterator[MappingProcess]:
    """A process that has `mem_file` mapped, `private` or `shared`; ended on leaving."""
    command = [sys.executable, "-I", "-S", "-c", _PROGRAM, str(mem_file), kind]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield MappingProcess(process)
        finally:
            process.kill()
