"""Where guest RAM lies in a process, found or refused. Real VMMs: tests/firecracker and tests/memory."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ramet.errors import UnavailableError, WrongStateError
from ramet.memory.mappings import FileIdentity, Mapping, identity_of
from ramet.memory.pagemap import changed_runs_by_scan
from ramet.memory.ram import changed_pages, locate_ram, ram_bytes
from ramet.model.record import RamRange
from ramet.units import MIB, PAGE_SIZE_BYTES, FileOffset, HostVirtual
from tests.memory.mapping_process import mapping_process, needs_linux
from tests.memory.test_capture import make_mem_file, pages_of

pytestmark = needs_linux

PAGE = PAGE_SIZE_BYTES
# Lengths that no other area of this process has.
LOW, HIGH = 37 * MIB, 11 * MIB
RSDP_AT = 0xE0000


def rsdp() -> bytes:
    table = bytearray(b"RSD PTR \0RAMET \0\0\0\0\0")
    table[8] = -sum(table) % 256
    return bytes(table)


class Memory:
    """Anonymous memory of this process with a border on each side, so that it is an area of its own."""

    def __init__(self, length_bytes: int) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        self.memory = mmap.mmap(-1, length_bytes + 2 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        whole = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.start = whole + PAGE
        for border in (whole, self.start + length_bytes):
            assert libc.mprotect(border, PAGE, 0) == 0

    def put(self, offset: int, data: bytes) -> None:
        self.memory[PAGE + offset : PAGE + offset + len(data)] = data


@pytest.fixture
def both() -> Iterator[Memory]:
    made = Memory(LOW + HIGH)
    yield made
    made.memory.close()


def test_of_two_regions_in_one_area_the_one_with_the_tables_is_the_low_one(both: Memory) -> None:
    both.put(HIGH + RSDP_AT, rsdp())
    assert locate_ram(os.getpid(), mem=None, regions=[LOW, HIGH]) == (
        RamRange(both.start + HIGH, LOW, 0),
        RamRange(both.start, HIGH, LOW),
    )
    both.put(HIGH + RSDP_AT, bytes(20))
    both.put(RSDP_AT + 16, rsdp())
    assert locate_ram(os.getpid(), mem=None, regions=[LOW, HIGH]) == (
        RamRange(both.start, LOW, 0),
        RamRange(both.start + LOW, HIGH, LOW),
    )


@pytest.mark.parametrize(
    "where", [[], [RSDP_AT, HIGH + RSDP_AT], [RSDP_AT + 8], [HIGH + RSDP_AT + 128 * 1024]]
)
def test_what_can_not_be_told_is_not_guessed(both: Memory, where: list[int]) -> None:
    for offset in where:
        both.put(offset, rsdp())
    with pytest.raises(WrongStateError, match="anonymous memory"):
        locate_ram(os.getpid(), mem=None, regions=[LOW, HIGH])


def test_a_table_with_a_wrong_sum_is_none(both: Memory) -> None:
    both.put(RSDP_AT, rsdp()[:-1] + b"\x01")
    with pytest.raises(WrongStateError):
        locate_ram(os.getpid(), mem=None, regions=[LOW, HIGH])


def test_regions_in_areas_of_their_own_are_told_by_their_lengths() -> None:
    low, high = Memory(LOW), Memory(HIGH)
    assert locate_ram(os.getpid(), mem=None, regions=[LOW, HIGH]) == (
        RamRange(low.start, LOW, 0),
        RamRange(high.start, HIGH, LOW),
    )
    twin = Memory(LOW)
    with pytest.raises(WrongStateError, match="no anonymous memory"):
        locate_ram(os.getpid(), mem=None, regions=[LOW, HIGH])
    twin.put(RSDP_AT, rsdp())
    assert locate_ram(os.getpid(), mem=None, regions=[LOW, HIGH])[0].host_start == twin.start
    for one in (low, high, twin):
        one.memory.close()


def test_other_lengths_and_too_many_regions_are_refused(both: Memory) -> None:
    both.put(RSDP_AT, rsdp())
    for regions in ([LOW, HIGH + PAGE], [LOW], [LOW + HIGH - PAGE], [], [PAGE] * 9):
        with pytest.raises(WrongStateError):
            locate_ram(os.getpid(), mem=None, regions=regions)


def test_of_anonymous_memory_what_was_written_is_listed_and_zeros_are_not(both: Memory) -> None:
    both.put(HIGH + RSDP_AT, rsdp())
    ram = locate_ram(os.getpid(), mem=None, regions=[LOW, HIGH])
    advice = getattr(mmap, "MADV_NOHUGEPAGE", None)
    if advice is not None:
        both.memory.madvise(advice)
    both.put(3 * PAGE, b"high")
    both.put(HIGH + 5 * PAGE, b"low")
    assert both.memory[PAGE + 9 * PAGE] == 0  # only read: the kernel's page of zeros
    runs = changed_pages(os.getpid(), ram, None)
    assert all(run.host_start is not None for run in runs)
    listed = set(pages_of(runs))
    written = {5, RSDP_AT // PAGE, LOW // PAGE + 3}
    assert written <= listed
    try:
        changed_runs_by_scan(
            os.getpid(), [Mapping(HostVirtual(both.start), PAGE, FileOffset(0), FileIdentity(0, 0))]
        )
    except UnavailableError:
        # The page map can't tell the page of zeros from others.
        written.add(LOW // PAGE + 9)
    assert listed == written


def test_a_mem_file_has_to_be_mapped_whole(tmp_path: Path) -> None:
    mem = tmp_path / "mem"
    make_mem_file(mem, {1}, pages=64)
    identity = identity_of(mem)
    with mapping_process(mem) as process:
        ram = locate_ram(process.pid, mem=identity, regions=[64 * PAGE])
        assert ram == (RamRange(process.address, 64 * PAGE, 0),)
        assert ram_bytes(ram) == 64 * PAGE
        with pytest.raises(WrongStateError, match="whole"):
            locate_ram(process.pid, mem=identity, regions=[65 * PAGE])
        # What was noted before still tells what has gone since, at the edges too.
        process.tell("cover", 0, 2 * PAGE)
        process.tell("unmap", 63 * PAGE, PAGE)
        assert sorted(pages_of(changed_pages(process.pid, ram, identity))) == [0, 1, 63]
        with pytest.raises(WrongStateError, match="whole"):
            locate_ram(process.pid, mem=identity, regions=[64 * PAGE])
        with pytest.raises(WrongStateError, match="doesn't map"):
            locate_ram(process.pid, mem=FileIdentity(1, 1), regions=[64 * PAGE])
