"""A real process with areas of anonymous memory, as a VMM has that booted its guest without a mem-file."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Final

_PROGRAM: Final = r"""
import ctypes, mmap, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
for line in sys.stdin:
    verb, first, second = line.split()
    if verb == "map":
        length, page = int(first), mmap.PAGESIZE
        # Borders that can't be written keep neighbours apart.
        whole = libc.mmap(None, length + 2 * page, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        assert libc.mprotect(whole + page, length, mmap.PROT_READ | mmap.PROT_WRITE) == 0
        libc.madvise(whole + page, length, 15)  # MADV_NOHUGEPAGE
        print(whole + page, flush=True)
    elif verb == "put":
        data = bytes.fromhex(second)
        ctypes.memmove(int(first), data, len(data))
        print("done", flush=True)
    elif verb == "read":
        ctypes.string_at(int(first), int(second))
        print("done", flush=True)
"""

RSDP_AT: Final = 0xE0000
XSDT_AT: Final = 0x9FC00


def rsdp(table: int = XSDT_AT, *, revision: int = 2) -> bytes:
    """A root pointer to the table at that guest-physical address."""
    first = bytearray(b"RSD PTR \0RAMET " + bytes([revision]) + struct.pack("<I", table))
    first[8] = -sum(first) % 256
    whole = first + struct.pack("<IQ4x", 36, table)
    whole[32] = -sum(whole) % 256
    return bytes(whole if revision >= 2 else first)


def description_table(signature: bytes = b"XSDT") -> bytes:
    """A table without entries."""
    header = bytearray(
        struct.pack("<4sIBB6s8sI4sI", signature, 36, 1, 0, b"RAMET ", b"RAMETTAB", 1, b"RAME", 1)
    )
    header[9] = -sum(header) % 256
    return bytes(header)


class AnonymousProcess:
    """The process and its pipes. Each call returns when the process has done it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.pid = process.pid
        assert process.stdin is not None
        assert process.stdout is not None
        self._orders: IO[bytes] = process.stdin
        self._answers: IO[bytes] = process.stdout

    def _tell(self, verb: str, first: int, second: object) -> bytes:
        self._orders.write(f"{verb} {first} {second}\n".encode())
        self._orders.flush()
        return self._answers.readline()

    def map(self, length_bytes: int) -> int:
        """A new area of that length; its address."""
        return int(self._tell("map", length_bytes, 0))

    def put(self, address: int, data: bytes) -> None:
        """Write to its memory."""
        assert self._tell("put", address, data.hex()) == b"done\n"

    def read(self, address: int, length_bytes: int) -> None:
        """Have it read its memory."""
        assert self._tell("read", address, length_bytes) == b"done\n"

    def put_tables(self, start: int, *, at: int = RSDP_AT) -> None:
        """The tables of a guest whose address 0 is at `start`."""
        self.put(start + XSDT_AT, description_table())
        self.put(start + at, rsdp())

    def clear_tables(self, start: int, *, at: int = RSDP_AT) -> None:
        """Zeros where `put_tables` wrote."""
        self.put(start + XSDT_AT, bytes(36))
        self.put(start + at, bytes(36))


@contextmanager
def anonymous_process() -> Iterator[AnonymousProcess]:
    """Such a process, without any area yet; ended on leaving."""
    command = [sys.executable, "-I", "-S", "-c", _PROGRAM]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield AnonymousProcess(process)
        finally:
            process.kill()
