"""Deltas: what a fork changed, written down, laid into another process, merged with the base."""

from __future__ import annotations

import os
import struct
import tempfile
import zlib
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.errors import DamagedError, FilesystemError, VmmError, WrongStateError
from ramet.memory.delta import apply_delta, compact, write_delta, write_mem_file
from ramet.memory.delta_format import TRAILER_BYTES, Index, open_delta
from ramet.memory.mappings import identity_of
from ramet.memory.pages import LivePages, Pages, Stretch, buffer_pages
from ramet.memory.ram import changed_pages, locate_ram
from ramet.model.record import DeltaRun
from ramet.system.files import allocated_bytes
from ramet.units import KIB, PAGE_SIZE_BYTES
from tests.unit.memory.mapping_process import mapping_process, needs_linux
from tests.unit.memory.test_capture import make_mem_file, ranges

pytestmark = needs_linux

PAGE = PAGE_SIZE_BYTES
PAGES = 256
SIZE = PAGES * PAGE


class Given:
    """Pages from a test: their numbers and bytes, 0 for zeros."""

    def __init__(self, pages: dict[int, int], batch: int = 7) -> None:
        self._pages = sorted(pages.items())
        self._batch = batch
        self.changed_bytes = len(pages) * PAGE

    def batches(self) -> Iterator[list[Stretch]]:
        for start in range(0, len(self._pages), self._batch):
            yield [
                Stretch(page * PAGE, PAGE, memoryview(bytes([value]) * PAGE) if value else None)
                for page, value in self._pages[start : start + self._batch]
            ]


def content_of(pages: dict[int, int], below: bytes = bytes(SIZE)) -> bytes:
    content = bytearray(below)
    for page, value in pages.items():
        content[page * PAGE : (page + 1) * PAGE] = bytes([value]) * PAGE
    return bytes(content)


page_values = st.dictionaries(st.integers(0, PAGES - 1), st.integers(0, 255), max_size=80)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    base_pages=st.sets(st.integers(0, PAGES - 1), max_size=60), pages=page_values, batch=st.integers(1, 90)
)
def test_base_and_delta_are_the_new_content(base_pages: set[int], pages: dict[int, int], batch: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        base, out = Path(place, "mem"), Path(place, "out")
        make_mem_file(base, base_pages)
        before = base.read_bytes()
        expected = content_of(pages, before)
        for name, given_base in (("thin", base), ("full", None)):
            delta = Path(place, name)
            facts = write_delta(delta, Given(pages, batch), memory_bytes=SIZE, base=given_base)
            assert delta.stat().st_size == facts.size_bytes
            assert facts.data_bytes == sum(1 for value in pages.values() if value) * PAGE
            with open_delta(delta, SIZE) as found:
                assert found.facts == facts
                listed = list(found.runs())
            # Zeros over a hole of the base are what a base can save.
            kept = {
                page for page, value in pages.items() if value or given_base is None or page in base_pages
            }
            assert {
                page
                for run in listed
                for page in range(run.file_offset // PAGE, (run.file_offset + run.length_bytes) // PAGE)
            } == kept
            made = compact(base, delta, out)
            assert out.read_bytes() == expected
            assert made.allocated_bytes == allocated_bytes(out) <= (len(base_pages | kept) + 8) * PAGE
        whole = write_mem_file(Path(place, "whole"), Given(pages, batch), memory_bytes=SIZE)
        assert Path(place, "whole").read_bytes() == content_of(pages)
        assert whole.allocated_bytes <= facts.data_bytes + 8 * PAGE
        assert base.read_bytes() == before
        assert sorted(path.name for path in Path(place).iterdir()) == ["full", "mem", "out", "thin", "whole"]


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    changes=st.lists(st.tuples(ranges, st.sampled_from([0, 7, 200])), max_size=20),
    covers=st.lists(ranges, max_size=2),
)
def test_a_fork_with_the_delta_sees_what_its_source_saw_and_lists_it_again(
    changes: list[tuple[tuple[int, int], int]], covers: list[tuple[int, int]]
) -> None:
    with tempfile.TemporaryDirectory() as place:
        base = Path(place, "mem")
        make_mem_file(base, {0, 1, 2, 100, 101, 255})
        identity = identity_of(base)
        with mapping_process(base) as source, mapping_process(base) as fork, mapping_process(base) as child:
            ram = locate_ram(source.pid, mem=identity, regions=[SIZE])
            for page, count in covers:
                source.tell("cover", page * PAGE, count * PAGE)
            for (page, count), value in changes:
                source.write_page(page, value, count)
            runs = changed_pages(source.pid, ram, identity)
            with buffer_pages(source.pid, runs) as buffered:
                facts = write_delta(Path(place, "one"), buffered, memory_bytes=SIZE, base=base)
            assert (
                write_delta(Path(place, "live"), LivePages(source.pid, runs), memory_bytes=SIZE, base=base)
                == facts
            )
            assert Path(place, "live").read_bytes() == Path(place, "one").read_bytes()
            seen = source.view(0, SIZE)

            in_fork = locate_ram(fork.pid, mem=identity, regions=[SIZE])
            assert apply_delta(Path(place, "one"), fork.pid, in_fork) == facts
            assert fork.view(0, SIZE) == seen
            listed = changed_pages(fork.pid, in_fork, identity)
            assert sum(run.length_bytes for run in listed) == facts.applied_bytes
            # Deltas are flat: the fork's own holds what it inherited.
            fork.write_page(77, 9)
            pages = LivePages(fork.pid, changed_pages(fork.pid, in_fork, identity))
            write_delta(Path(place, "two"), pages, memory_bytes=SIZE, base=base)
            with open(Path(place, "two"), "rb") as opened:  # noqa: PTH123
                apply_delta(opened.fileno(), child.pid, locate_ram(child.pid, mem=identity, regions=[SIZE]))
            assert child.view(0, SIZE) == fork.view(0, SIZE)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(pages=page_values, damage=st.data())
def test_damage_is_found_wherever_something_is_checked(pages: dict[int, int], damage: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as place:
        delta = Path(place, "delta")
        facts = write_delta(delta, Given(pages), memory_bytes=SIZE)
        with open_delta(delta, SIZE) as found:
            before = list(found.runs())
        good = delta.read_bytes()
        delta.unlink()
        kind = damage.draw(st.sampled_from(["flip", "cut", "grow", "insert"]))
        position = damage.draw(st.integers(0, len(good) - 1))
        if kind == "flip":
            bad = bytearray(good)
            bad[position] ^= damage.draw(st.integers(1, 255))
        elif kind == "cut":
            bad = bytearray(good[:position])
        elif kind == "grow":
            bad = bytearray(good + bytes(damage.draw(st.integers(1, 2 * PAGE))))
        else:
            bad = bytearray(good[:position] + b"\x01" * damage.draw(st.integers(1, 100)) + good[position:])
        delta.write_bytes(bad)
        if kind == "flip" and position < facts.data_bytes:
            # What the data is, is for the manifest's digest to say; where it belongs hasn't changed.
            with open_delta(delta, SIZE) as found:
                assert list(found.runs()) == before
        else:
            with pytest.raises(DamagedError), open_delta(delta, SIZE):
                pass


def forged(
    entries: list[tuple[int, int, int]], *, memory: int = SIZE, data: int | None = None, **fields: int
) -> bytes:
    """A delta with a right check, whatever else is wrong: (page, pages, zeros) of each run."""
    index = array("Q", [page << 28 | pages << 1 | zeros for page, pages, zeros in entries]).tobytes()
    if data is None:
        data = sum(pages for _, pages, zeros in entries if not zeros) * PAGE
    runs = fields.get("runs", len(entries))
    head = struct.pack(
        "<8sIIQQQ", b"RAMETDLT", fields.get("version", 1), fields.get("page", PAGE), memory, runs, data
    )
    trailer = head + struct.pack("<I", zlib.crc32(head, zlib.crc32(index)))
    return bytes(fields.get("written", data)) + index + trailer.ljust(TRAILER_BYTES, b"\0")


def test_the_forger_can_also_make_a_good_one(tmp_path: Path) -> None:
    (tmp_path / "delta").write_bytes(forged([(3, 2, 0), (5, 1, 1), (PAGES - 1, 1, 0)]))
    with open_delta(tmp_path / "delta", SIZE) as delta:
        assert list(delta.runs()) == [
            DeltaRun(3 * PAGE, 2 * PAGE, 0),
            DeltaRun(5 * PAGE, PAGE, None),
            DeltaRun((PAGES - 1) * PAGE, PAGE, 2 * PAGE),
        ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "too short"),
        (b"x" * 500, "no delta"),
        (forged([(1, 1, 0)], version=2), "version 2"),
        (forged([(1, 1, 0)], page=16384), "16384"),
        (forged([(1, 1, 0)], memory=SIZE * 2), f"{SIZE * 2} bytes of RAM"),
        (forged([(1, 1, 0)], runs=1 << 60), "don't make up"),
        (forged([(1, 1, 0)], runs=2), "don't make up"),
        (forged([(1, 1, 0)], data=1 << 62, written=0), "don't make up"),
        (forged([(1, 1, 0)], data=2 * PAGE), "don't make up its data"),
        (forged([(1, 1, 0)], data=PAGE - 8, written=PAGE - 8), "don't make up its data"),
        (forged([(4, 2, 0), (5, 1, 0)]), "in order"),
        (forged([(4, 1, 0), (4, 1, 1)]), "in order"),
        (forged([(4, 1, 0), (3, 1, 0)]), "in order"),
        (forged([(4, 0, 1)]), "in order"),
        (forged([(PAGES, 1, 0)]), "beyond"),
        (forged([(PAGES - 1, 2, 1)]), "beyond"),
        (forged([(0, (1 << 27) - 1, 1)]), "beyond"),
        (forged([((1 << 36) - 1, (1 << 27) - 1, 1)]), "beyond"),
    ],
)
def test_a_hostile_delta_is_refused_before_anything_is_written(
    tmp_path: Path, content: bytes, said: str
) -> None:
    base, delta = tmp_path / "mem", tmp_path / "delta"
    make_mem_file(base, {1})
    delta.write_bytes(content)
    with mapping_process(base) as process:
        ram = locate_ram(process.pid, mem=identity_of(base), regions=[SIZE])
        for attempt in (
            lambda: apply_delta(delta, process.pid, ram),
            lambda: compact(base, delta, tmp_path / "out"),
        ):
            with pytest.raises(DamagedError, match=said):
                attempt()
        assert changed_pages(process.pid, ram, identity_of(base)) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["delta", "mem"]


def test_a_huge_sparse_file_is_no_reason_to_take_memory(tmp_path: Path) -> None:
    delta = tmp_path / "delta"
    with delta.open("wb") as file:
        file.truncate(1 << 40)
        file.seek((1 << 40) - TRAILER_BYTES)
        file.write(forged([], runs=(1 << 40) // 8 - 8)[-TRAILER_BYTES:])
    with pytest.raises(DamagedError, match="don't make up"), open_delta(delta, SIZE):
        pass


def test_a_run_longer_than_an_entry_can_say_is_several() -> None:
    pages = (1 << 27) + 5
    index = Index()
    index.add(PAGE, pages * PAGE, zeros=True)
    end, facts = index.finish((pages + 1) * PAGE)
    assert facts.runs == 2
    assert facts.zero_bytes == pages * PAGE
    assert len(end) == facts.size_bytes


def test_a_small_change_takes_its_pages_and_little_more(tmp_path: Path) -> None:
    delta = tmp_path / "delta"
    write_delta(delta, Given(dict.fromkeys(range(0, PAGES, 2), 1)), memory_bytes=SIZE)
    assert delta.stat().st_size <= PAGES // 2 * PAGE + PAGE
    assert allocated_bytes(delta) <= PAGES // 2 * PAGE + 64 * KIB


def test_pages_and_process_that_go_away(tmp_path: Path) -> None:
    base, delta = tmp_path / "mem", tmp_path / "delta"
    make_mem_file(base, {1})
    write_delta(delta, Given({5: 1, 100: 0}), memory_bytes=SIZE)
    with mapping_process(base) as process:
        ram = locate_ram(process.pid, mem=identity_of(base), regions=[SIZE])
        process.tell("unmap", 5 * PAGE, PAGE)
        with pytest.raises(WrongStateError, match="no memory to write to"):
            apply_delta(delta, process.pid, ram)
        process.end()
        with pytest.raises(VmmError, match="has ended"):
            apply_delta(delta, process.pid, ram)


def test_no_space_is_said_and_nothing_is_left(tmp_path: Path, full: Path) -> None:
    base, delta = tmp_path / "mem", tmp_path / "delta"
    make_mem_file(base, set(), pages=8 * PAGES)
    pages = Given(dict.fromkeys(range(4 * PAGES), 1))
    write_delta(delta, pages, memory_bytes=8 * SIZE)
    for attempt in (
        lambda: write_delta(full / "delta", pages, memory_bytes=8 * SIZE),
        lambda: write_mem_file(full / "mem", pages, memory_bytes=8 * SIZE),
        lambda: compact(base, delta, full / "out"),
    ):
        with pytest.raises(FilesystemError, match="free some space"):
            attempt()
        assert list(full.iterdir()) == []


def test_compaction_shares_blocks_where_the_filesystem_can(xfs: Path) -> None:
    base, delta, out = xfs / "base", xfs / "delta", xfs / "out"
    make_mem_file(base, set(range(PAGES)))
    before = base.read_bytes()
    write_delta(delta, Given({3: 0, 4: 9}), memory_bytes=SIZE, base=base)
    compact(base, delta, out, mode=0o400)
    assert out.read_bytes() == content_of({3: 0, 4: 9}, before)
    assert base.read_bytes() == before
    assert out.stat().st_mode & 0o777 == 0o400


def test_an_error_while_reading_pages_leaves_what_was_there(tmp_path: Path) -> None:
    class Failing(Given):
        def batches(self) -> Iterator[list[Stretch]]:
            yield from super().batches()
            raise VmmError("gone")

    (tmp_path / "delta").write_bytes(b"old")
    pages: Pages = Failing({1: 1})
    for attempt in (
        lambda: write_delta(tmp_path / "delta", pages, memory_bytes=SIZE),
        lambda: write_mem_file(tmp_path / "delta", pages, memory_bytes=SIZE),
    ):
        with pytest.raises(VmmError, match="gone"):
            attempt()
    assert (tmp_path / "delta").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["delta"]  # noqa: PTH208
