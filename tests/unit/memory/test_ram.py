"""Where guest RAM lies in a process, proved or refused. Real VMMs: tests/vm/capture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ramet.errors import UnavailableError, WrongStateError
from ramet.memory.mappings import FileIdentity, Mapping, identity_of
from ramet.memory.pagemap import changed_runs_by_scan
from ramet.memory.ram import changed_pages, locate_ram, ram_bytes
from ramet.model.record import RamRange
from ramet.units import KIB, MIB, PAGE_SIZE_BYTES, FileOffset, HostVirtual
from tests.unit.memory.anonymous_process import (
    RSDP_AT,
    XSDT_AT,
    AnonymousProcess,
    anonymous_process,
    description_table,
    rsdp,
)
from tests.unit.memory.mapping_process import mapping_process, needs_linux
from tests.unit.memory.test_capture import make_mem_file, pages_of

pytestmark = needs_linux

PAGE = PAGE_SIZE_BYTES
# Lengths that nothing else in an interpreter has.
LOW, HIGH = 37 * MIB, 11 * MIB
ARENA = 132 * KIB


@pytest.fixture
def process() -> Iterator[AnonymousProcess]:
    with anonymous_process() as process:
        yield process


def found(process: AnonymousProcess, *regions: int) -> tuple[RamRange, ...]:
    return locate_ram(process.pid, mem=None, regions=regions)


@pytest.mark.timing
def test_of_two_regions_in_one_area_the_one_with_the_tables_is_the_low_one(process: AnonymousProcess) -> None:
    start = process.map(LOW + HIGH)
    process.put_tables(start + HIGH)
    assert found(process, LOW, HIGH) == (RamRange(start + HIGH, LOW, 0), RamRange(start, HIGH, LOW))
    process.clear_tables(start + HIGH)
    process.put_tables(start, at=RSDP_AT + 16)
    assert found(process, LOW, HIGH) == (RamRange(start, LOW, 0), RamRange(start + LOW, HIGH, LOW))


@pytest.mark.timing
@pytest.mark.parametrize("before", [0, PAGE, ARENA, LOW + 3 * PAGE])
@pytest.mark.parametrize("behind", [0, PAGE, ARENA, LOW + 3 * PAGE])
def test_one_region_is_found_beside_whatever_else_its_area_holds(
    process: AnonymousProcess, before: int, behind: int
) -> None:
    process.map(LOW)  # of the right length, and without tables
    start = process.map(before + LOW + behind) + before
    process.put(start + LOW // 2, b"content")
    process.put_tables(start)
    assert found(process, LOW) == (RamRange(start, LOW, 0),)


@pytest.mark.timing
@pytest.mark.parametrize("upper_first", [False, True])
def test_two_regions_are_found_beside_a_heap(process: AnonymousProcess, upper_first: bool) -> None:
    start = process.map(LOW + HIGH + ARENA)
    low, high = (start + HIGH, start) if upper_first else (start, start + LOW)
    process.put_tables(low)
    if upper_first:
        assert found(process, LOW, HIGH) == (RamRange(low, LOW, 0), RamRange(high, HIGH, LOW))
        return
    # Behind the low one is more than the upper one takes up: where that begins, nothing tells.
    with pytest.raises(WrongStateError, match="no anonymous memory that is proved"):
        found(process, LOW, HIGH)


@pytest.mark.timing
def test_two_places_for_the_upper_region_are_not_guessed_between(process: AnonymousProcess) -> None:
    process.put_tables(process.map(LOW + ARENA))
    high = process.map(HIGH)
    assert found(process, LOW, HIGH)[1] == RamRange(high, HIGH, LOW)
    process.map(HIGH)
    with pytest.raises(WrongStateError, match="no anonymous memory that is proved"):
        found(process, LOW, HIGH)


WRONG = ("pointer", "table", "sum", "second sum", "far")


@pytest.mark.timing
@pytest.mark.parametrize(("where", "what"), [([], ""), ([0, HIGH], ""), *(([0], wrong) for wrong in WRONG)])
def test_what_can_not_be_told_is_not_guessed(process: AnonymousProcess, where: list[int], what: str) -> None:
    start = process.map(LOW + HIGH)
    for offset in where:
        process.put_tables(start + offset)
    match what:
        case "pointer":  # where no guest would look for it
            process.put(start + RSDP_AT, bytes(36))
            process.put(start + RSDP_AT + 8, rsdp())
            process.put(start + 0x100000, rsdp())
        case "table":
            process.put(start + XSDT_AT, description_table(b"RSDT"))
        case "sum":
            process.put(start + RSDP_AT + 9, b"\1")
        case "second sum":
            process.put(start + RSDP_AT + 33, b"\1")
        case "far":
            process.put(start + RSDP_AT, rsdp(LOW - 8))
    for regions in ([LOW, HIGH], [LOW]):
        if what or not where:
            with pytest.raises(WrongStateError, match="anonymous memory"):
                found(process, *regions)
    if where == [0, HIGH]:
        with pytest.raises(WrongStateError, match="more than one anonymous memory"):
            found(process, LOW, HIGH)


@pytest.mark.timing
def test_a_pointer_of_the_first_version_names_another_kind_of_table(process: AnonymousProcess) -> None:
    start = process.map(LOW)
    process.put(start + RSDP_AT, rsdp(revision=0))
    process.put(start + XSDT_AT, description_table(b"RSDT"))
    assert found(process, LOW) == (RamRange(start, LOW, 0),)


@pytest.mark.timing
def test_a_pointer_across_pages_is_found(process: AnonymousProcess) -> None:
    start = process.map(PAGE + LOW) + PAGE
    process.put_tables(start, at=RSDP_AT + PAGE - 16)
    assert found(process, LOW) == (RamRange(start, LOW, 0),)


@pytest.mark.timing
def test_a_guest_in_the_guest_is_not_taken_for_it(process: AnonymousProcess) -> None:
    """Its tables are as good. The areas that RAM alone makes up come first."""
    start = process.map(HIGH + LOW)
    process.put_tables(start + HIGH)
    process.put_tables(start + HIGH // 2)
    assert found(process, LOW, HIGH) == (RamRange(start + HIGH, LOW, 0), RamRange(start, HIGH, LOW))


@pytest.mark.timing
def test_regions_in_areas_of_their_own_are_told_by_the_tables(process: AnonymousProcess) -> None:
    low, high, twin = process.map(LOW), process.map(HIGH), process.map(LOW)
    with pytest.raises(WrongStateError, match="no anonymous memory"):
        found(process, LOW, HIGH)
    process.put_tables(twin)
    assert found(process, LOW, HIGH) == (RamRange(twin, LOW, 0), RamRange(high, HIGH, LOW))
    process.put_tables(low)
    with pytest.raises(WrongStateError, match="more than one anonymous memory"):
        found(process, LOW, HIGH)


@pytest.mark.timing
def test_other_lengths_and_too_many_regions_are_refused(process: AnonymousProcess) -> None:
    process.put_tables(process.map(LOW + HIGH) + HIGH)
    for regions in ([LOW, HIGH + PAGE], [LOW + PAGE], [LOW + HIGH], [], [PAGE] * 9, [PAGE]):
        with pytest.raises(WrongStateError):
            found(process, *regions)


@pytest.mark.timing
def test_of_anonymous_memory_what_was_written_is_listed_and_zeros_are_not(process: AnonymousProcess) -> None:
    start = process.map(HIGH + LOW)
    process.put_tables(start + HIGH)
    ram = found(process, LOW, HIGH)
    process.put(start + 2 * PAGE, b"high")
    process.put(start + HIGH + 5 * PAGE, b"low")
    process.read(start + 8 * PAGE, 1)  # the kernel's page of zeros
    runs = changed_pages(process.pid, ram, None)
    assert all(run.host_start is not None for run in runs)
    listed = set(pages_of(runs))
    written = {5, XSDT_AT // PAGE, RSDP_AT // PAGE, LOW // PAGE + 2}
    assert written <= listed
    try:
        changed_runs_by_scan(
            process.pid, [Mapping(HostVirtual(start), PAGE, FileOffset(0), FileIdentity(0, 0))]
        )
    except UnavailableError:
        # The page map can't tell the page of zeros from others.
        written.add(LOW // PAGE + 8)
    assert listed == written


@pytest.mark.timing
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
