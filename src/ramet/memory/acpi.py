"""A guest's address 0 in its VMM's anonymous memory, proved by the ACPI tables that the VMM wrote for it.

A root pointer (RSDP) lies on a multiple of 16 in the last 128 KiB below 1 MiB, has two checksums, and names
the guest-physical address of a table (XSDT or RSDT) that has a signature, a length and a checksum. With a
wrong start of the memory region, that table would be elsewhere, so the two together prove the start.

Sources: ACPI 6.5 §5.2.5.1, "Finding the RSDP on IA-PC Systems", §5.2.5.3 (RSDP), §5.2.6 (table header).
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator
from typing import Final

from ramet.errors import WrongStateError
from ramet.memory.mappings import FileIdentity, Mapping
from ramet.memory.pagemap import changed_runs
from ramet.memory.process_memory import read_memory
from ramet.units import KIB, MIB, PAGE_SIZE_BYTES, FileOffset, HostVirtual

ANONYMOUS: Final = FileIdentity(0, 0)
LOW_END: Final = MIB
"""A region that ends below this has no place for a root pointer."""
_POINTERS_START: Final = 0xE0000
_ALIGNMENT: Final = 16
_SIGNATURE: Final = b"RSD PTR "
_POINTER_BYTES: Final = 36
_FIRST_POINTER_BYTES: Final = 20  # of its first version, which the first checksum covers
_HEADER_BYTES: Final = 36
_LONGEST_TABLE_BYTES: Final = 64 * KIB
_CHUNK_BYTES: Final = MIB


def is_guest_start(pid: int, start: int, length_bytes: int) -> bool:
    """Tell whether the guest's address 0 is at `start`, in a region of that length in the process's memory.

    Raises as `starts_within`.
    """
    return start in starts_within(pid, start, start + length_bytes, length_bytes)


def starts_within(pid: int, start: int, end: int, length_bytes: int) -> set[int]:
    """Find the pages that hold the guest's address 0 and leave room for a region of that length.

    The range is `start` to `end`. Reads only pages that have content. Raises `UnavailableError` when the
    kernel doesn't permit reading, `VmmError` when the process has ended.
    """
    if length_bytes < LOW_END or end - start < length_bytes:
        return set()
    tables = set()
    last = end - length_bytes
    for address, pointer in _pointers(pid, start + _POINTERS_START, last + LOW_END):
        # Every place below 1 MiB at which the guest would find it, if its memory begins with a page.
        for place in range(_POINTERS_START + address % PAGE_SIZE_BYTES, LOW_END, PAGE_SIZE_BYTES):
            begin = address - place
            if start <= begin <= last and _names_a_table(pid, begin, length_bytes, pointer):
                tables.add(begin)
    return tables


def _pointers(pid: int, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Find the valid root pointers in that part of the process's anonymous memory, each with its address."""
    mapping = Mapping(HostVirtual(start), end - start, FileOffset(0), ANONYMOUS)
    for run in changed_runs(pid, [mapping]):
        if run.host_start is None:
            continue
        behind = run.host_start + run.length_bytes
        for chunk in range(run.host_start, behind, _CHUNK_BYTES):
            # What a chunk's end cuts is whole in it, too.
            content = _read(pid, chunk, min(_CHUNK_BYTES + _POINTER_BYTES, behind - chunk))
            position = content.find(_SIGNATURE)
            while position >= 0:
                pointer = content[position : position + _POINTER_BYTES]
                if (chunk + position) % _ALIGNMENT == 0 and _is_pointer(pointer):
                    yield chunk + position, pointer
                position = content.find(_SIGNATURE, position + 1)


def _is_pointer(pointer: bytes) -> bool:
    """Check the pointer's checksum, and from its second version on both checksums."""
    if len(pointer) < _FIRST_POINTER_BYTES or sum(pointer[:_FIRST_POINTER_BYTES]) % 256:
        return False
    return pointer[15] < 2 or (len(pointer) == _POINTER_BYTES and sum(pointer) % 256 == 0)


def _names_a_table(pid: int, begin: int, length_bytes: int, pointer: bytes) -> bool:
    if pointer[15] >= 2:
        (address,) = struct.unpack_from("<Q", pointer, 24)
        signature = b"XSDT"
    else:
        (address,) = struct.unpack_from("<I", pointer, 16)
        signature = b"RSDT"
    if not 0 < address <= length_bytes - _HEADER_BYTES:
        return False
    header = _read(pid, begin + address, _HEADER_BYTES)
    (table_bytes,) = struct.unpack_from("<I", header, 4)
    if not header.startswith(signature) or not _HEADER_BYTES <= table_bytes <= _LONGEST_TABLE_BYTES:
        return False
    if address + table_bytes > length_bytes:
        return False
    return sum(_read(pid, begin + address, table_bytes)) % 256 == 0


def _read(pid: int, start: int, length_bytes: int) -> bytes:
    """Read that memory, or return zeros if a part of it is no longer mapped: zeros prove nothing."""
    buffer = ctypes.create_string_buffer(length_bytes)
    try:
        read_memory(pid, [start], [length_bytes], ctypes.addressof(buffer))
    except WrongStateError:
        return bytes(length_bytes)
    return buffer.raw
