"""A delta as Cloud Hypervisor reads it: no page is lost, none is another's, and no hole is among them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.drivers.cloud_hypervisor import ranges, releases
from ramet.drivers.cloud_hypervisor.ranges import Span, delta_source, guest_ranges, is_all_data, merged
from ramet.drivers.cloud_hypervisor.state import GuestRange
from ramet.errors import DamagedError
from ramet.model.record import DeltaRun, RamRegion
from ramet.system.memfile import memory_file
from ramet.units import GIB, MIB, PAGE_SIZE_BYTES

PAGE = PAGE_SIZE_BYTES
PAGES = 64
# As a machine of more than 3 GiB has them, smaller.
REGIONS = (RamRegion(0, 40 * PAGE, 0), RamRegion(1 << 32, (PAGES - 40) * PAGE, 40 * PAGE))


def base_page(number: int) -> bytes:
    """The content of a page of the mem-file."""
    return bytes([number + 1]) * PAGE


def written(mem: Path) -> Path:
    """A mem-file in which no two pages are alike."""
    mem.write_bytes(b"".join(map(base_page, range(PAGES))))
    return mem


def runs_of(pages: dict[int, int]) -> tuple[list[DeltaRun], bytes]:
    """A delta of those pages, each with its byte, 0 for zeros: its runs and its data."""
    runs: list[DeltaRun] = []
    data = b""
    for number, byte in sorted(pages.items()):
        if not byte:
            runs.append(DeltaRun(number * PAGE, PAGE, None))
            continue
        last = runs[-1] if runs else None
        if last is not None and last.data_offset is not None and sum(last[:2]) == number * PAGE:
            runs[-1] = last._replace(length_bytes=last.length_bytes + PAGE)
        else:
            runs.append(DeltaRun(number * PAGE, PAGE, len(data)))
        data += bytes([byte]) * PAGE
    return runs, data


def loaded(mem: Path, read: Sequence[GuestRange], path: str) -> bytes:
    """The RAM that a VMM makes of the mem-file and a `memory-ranges`, in the mem-file's order."""
    ram = bytearray(mem.read_bytes())
    with open(path, "rb") as file:  # noqa: PTH123 - as the VMM opens it
        for start, length in read:
            region = next(
                region
                for region in REGIONS
                if region.guest_start <= start < region.guest_start + region.length_bytes
            )
            offset = start - region.guest_start + region.file_offset
            assert offset + length <= region.file_offset + region.length_bytes
            data = file.read(length)
            assert len(data) == length
            ram[offset : offset + length] = data
    return bytes(ram)


@given(
    st.dictionaries(st.integers(0, PAGES - 1), st.integers(0, 255), min_size=1),
    st.integers(1, 40),
)
@settings(max_examples=150, deadline=None)
def test_the_ram_is_that_of_base_and_delta(
    tmp_path_factory: pytest.TempPathFactory, pages: dict[int, int], most: int
) -> None:
    mem = written(tmp_path_factory.mktemp("delta") / "mem")
    runs, data = runs_of(pages)
    expected = b"".join(
        bytes([pages[number]]) * PAGE if number in pages else base_page(number) for number in range(PAGES)
    )
    with memory_file("delta") as delta:
        os.pwrite(delta, data + b"index and trailer", 0)
        with delta_source(delta, runs, mem, REGIONS, most=most) as source:
            assert loaded(mem, source.ranges, source.path) == expected
            # One more where a range is split between the regions.
            assert len(source.ranges) <= most + 1
            assert sum(length for _, length in source.ranges) == source.data_bytes


def test_a_delta_of_few_runs_without_zeros_is_read_as_it_is(tmp_path: Path) -> None:
    mem = written(tmp_path / "mem")
    runs, data = runs_of({3: 7, 4: 8, 39: 9, 40: 10})
    with memory_file("delta") as delta:
        os.pwrite(delta, data, 0)
        with delta_source(delta, runs, mem, REGIONS) as source:
            assert os.path.samestat(Path(source.path).stat(), os.fstat(delta))
            assert source.ranges == (
                GuestRange(3 * PAGE, 2 * PAGE),
                GuestRange(39 * PAGE, PAGE),
                GuestRange(1 << 32, PAGE),
            )


@pytest.mark.parametrize("pages", [{3: 7, 4: 0}, {3: 7, 5: 8, 7: 9}])
def test_zeros_and_many_runs_are_written_anew(tmp_path: Path, pages: dict[int, int]) -> None:
    mem = written(tmp_path / "mem")
    runs, data = runs_of(pages)
    with memory_file("delta") as delta:
        os.pwrite(delta, data, 0)
        with delta_source(delta, runs, mem, REGIONS, most=2) as source:
            assert not os.path.samestat(Path(source.path).stat(), os.fstat(delta))
            with open(source.path, "rb") as file:  # noqa: PTH123 - as the VMM opens it
                assert is_all_data(file.fileno(), source.data_bytes)


def test_a_hole_in_a_deltas_data_is_no_hole_for_the_vmm(tmp_path: Path) -> None:
    """A filesystem may make holes of zeros."""
    mem = written(tmp_path / "mem")
    with memory_file("delta") as delta:
        os.truncate(delta, 2 * PAGE)
        os.pwrite(delta, b"\x05" * PAGE, PAGE)
        assert not is_all_data(delta, 2 * PAGE)
        with delta_source(delta, [DeltaRun(8 * PAGE, 2 * PAGE, 0)], mem, REGIONS) as source:
            ram = loaded(mem, source.ranges, source.path)
            assert ram[8 * PAGE : 10 * PAGE] == bytes(PAGE) + b"\x05" * PAGE
            with open(source.path, "rb") as file:  # noqa: PTH123 - as the VMM opens it
                assert is_all_data(file.fileno(), 2 * PAGE)


def test_a_delta_whose_data_is_cut_short_is_damaged(tmp_path: Path) -> None:
    mem = written(tmp_path / "mem")
    with memory_file("delta") as delta:
        os.pwrite(delta, b"\x05" * PAGE, 0)
        with (
            pytest.raises(DamagedError, match="shrank"),
            delta_source(delta, [DeltaRun(0, 2 * PAGE, 0)], mem, REGIONS),
        ):
            pass


@pytest.mark.parametrize("run", [DeltaRun((PAGES - 1) * PAGE, 2 * PAGE, 0), DeltaRun(PAGES * PAGE, PAGE, 0)])
def test_a_run_outside_of_the_ram_is_damaged(tmp_path: Path, run: DeltaRun) -> None:
    mem = written(tmp_path / "mem")
    with memory_file("delta") as delta:
        os.pwrite(delta, b"\x05" * 2 * PAGE, 0)
        with (
            pytest.raises(DamagedError, match="the RAM has no bytes"),
            delta_source(delta, [run], mem, REGIONS),
        ):
            pass


def test_a_range_is_split_where_the_regions_meet() -> None:
    regions = releases.ram_regions(4 * GIB)
    assert guest_ranges([Span(3 * GIB - MIB, 2 * MIB)], regions) == [
        GuestRange(3 * GIB - MIB, MIB),
        GuestRange(4 * GIB, MIB),
    ]


def spans_at(pages: Sequence[int]) -> list[Span]:
    """Spans of a page each."""
    return [Span(number * PAGE, PAGE) for number in pages]


def test_no_list_is_longer_than_the_most_and_the_smallest_gaps_go_first() -> None:
    pages = [0, 100, 150, 350, 10_000]
    assert merged(spans_at(pages), most=5) == spans_at(pages)
    assert merged(spans_at(pages), most=3) == [Span(0, 151 * PAGE), *spans_at([350, 10_000])]
    many = merged(spans_at(range(0, 3_000_000, 20)))
    assert len(many) == ranges.MOST_RANGES


def test_ram_regions_are_the_sources() -> None:
    assert releases.ram_regions(3 * GIB) == (RamRegion(0, 3 * GIB, 0),)
    assert releases.ram_regions(3 * GIB + MIB) == (
        RamRegion(0, 3 * GIB, 0),
        RamRegion(4 * GIB, MIB, 3 * GIB),
    )
