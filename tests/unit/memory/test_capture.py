"""What a process changed in its private mapping: listed in two ways that agree, written out as it sees it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.errors import FilesystemError, RametError, UnavailableError, UsageError, VmmError, WrongStateError
from ramet.memory import pagemap
from ramet.memory.apply import MemFile
from ramet.memory.delta import compact, write_delta, write_mem_file
from ramet.memory.mappings import Mapping, find_mapping, identity_of
from ramet.memory.pagemap import Run, changed_runs, changed_runs_by_pagemap, changed_runs_by_scan
from ramet.memory.pages import LivePages
from ramet.system.files import allocated_bytes
from ramet.units import PAGE_SIZE_BYTES, FileOffset, HostVirtual
from tests.unit.memory.mapping_process import mapping_process, needs_linux

pytestmark = needs_linux

PAGE = PAGE_SIZE_BYTES
PAGES = 256
SIZE = PAGES * PAGE


def scan_or_skip(pid: int, mappings: list[Mapping]) -> list[Run]:
    try:
        return changed_runs_by_scan(pid, mappings)
    except UnavailableError as error:
        pytest.skip(str(error))


def write_captured(base: Path, pid: int, runs: list[Run], out: Path) -> MemFile:
    """What a compacted capture of the process is: `base` with its pages over it. Nothing else is left."""
    delta = out.with_name(f"{out.name}-delta")
    try:
        write_delta(delta, LivePages(pid, runs), memory_bytes=base.stat().st_size)
        return compact(base, delta, out)
    finally:
        delta.unlink(missing_ok=True)


def make_mem_file(path: Path, data_pages: set[int], pages: int = PAGES) -> None:
    with path.open("wb") as file:
        file.truncate(pages * PAGE)
        for page in data_pages:
            file.seek(page * PAGE)
            file.write(bytes([page % 255 + 1]) * PAGE)


def pages_of(runs: list[Run]) -> list[int]:
    """The numbers of the pages in the runs, in their order and with any repetition."""
    return [
        page
        for run in runs
        for page in range(run.file_offset // PAGE, (run.file_offset + run.length_bytes) // PAGE)
    ]


@pytest.fixture
def mem(tmp_path: Path) -> Path:
    path = tmp_path / "mem"
    make_mem_file(path, {0, 1, 2, 100, 255})
    return path


ranges = st.tuples(st.integers(0, PAGES - 1), st.integers(1, 8)).map(
    lambda pair: (pair[0], min(pair[1], PAGES - pair[0]))
)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    data_pages=st.sets(st.integers(0, PAGES - 1), max_size=40),
    changes=st.lists(st.tuples(ranges, st.sampled_from([0, 0, 7, 200])), max_size=20),
    reads=st.lists(ranges, max_size=6),
    covers=st.lists(ranges, max_size=2),
    discards=st.lists(ranges, max_size=2),
    later=st.lists(st.tuples(ranges, st.sampled_from([0, 9])), max_size=6),
    chunk=st.sampled_from([1, 3, 512, 32_768]),
)
def test_the_captured_file_is_what_the_process_sees(
    data_pages: set[int],
    changes: list[tuple[tuple[int, int], int]],
    reads: list[tuple[int, int]],
    covers: list[tuple[int, int]],
    discards: list[tuple[int, int]],
    later: list[tuple[tuple[int, int], int]],
    chunk: int,
) -> None:
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        # Small chunks put their borders into the middle of what is listed.
        patch.setattr(pagemap, "_REGIONS", chunk)
        patch.setattr(pagemap, "_PAGEMAP_CHUNK_PAGES", chunk)
        base, out = Path(place, "mem"), Path(place, "out")
        make_mem_file(base, data_pages)
        before = base.read_bytes(), allocated_bytes(base), base.stat().st_mtime_ns
        with mapping_process(base) as process:
            mappings = find_mapping(process.pid, identity_of(base))
            for (page, count), value in changes:
                process.write_page(page, value, count)
            for verb, spans in (("read", reads), ("cover", covers), ("discard", discards)):
                for page, count in spans:
                    process.tell(verb, page * PAGE, count * PAGE)
            for (page, count), value in later:
                process.write_page(page, value, count)
            seen = process.view(0, SIZE)

            by_pagemap = changed_runs_by_pagemap(process.pid, mappings)
            # Only the scan can tell the page of zeros that the kernel lends to a reader of anonymous memory.
            by_scan = scan_or_skip(process.pid, mappings)
            assert sorted(pages_of(by_scan)) == sorted(pages_of(by_pagemap))
            if not covers:
                assert by_scan == by_pagemap
            assert len(set(pages_of(by_pagemap))) == len(pages_of(by_pagemap))
            differing = {
                page for page in range(PAGES) if seen[page * PAGE :][:PAGE] != before[0][page * PAGE :][:PAGE]
            }
            assert differing <= set(pages_of(by_pagemap))

            made = write_captured(base, process.pid, by_pagemap, out)
            write_captured(base, process.pid, by_scan, Path(place, "again"))
        assert out.read_bytes() == Path(place, "again").read_bytes() == seen
        assert (base.read_bytes(), allocated_bytes(base), base.stat().st_mtime_ns) == before
        assert made.size_bytes == SIZE
        assert made.allocated_bytes == allocated_bytes(out)
        assert made.changed_bytes == len(pages_of(by_pagemap)) * PAGE
        assert sorted(path.name for path in Path(place).iterdir()) == ["again", "mem", "out"]


@pytest.mark.parametrize("lister", [changed_runs, changed_runs_by_scan, changed_runs_by_pagemap])
def test_exactly_what_was_written_is_listed(
    mem: Path, lister: Callable[[int, list[Mapping]], list[Run]]
) -> None:
    with mapping_process(mem) as process:
        mappings = find_mapping(process.pid, identity_of(mem))
        scan_or_skip(process.pid, mappings)
        assert lister(process.pid, mappings) == []
        process.tell("read", 0, SIZE)
        assert lister(process.pid, mappings) == []
        process.write_page(3, 1)
        process.write_page(4, 0)
        process.write_page(200, 9, pages=10)
        assert lister(process.pid, mappings) == [
            Run(FileOffset(3 * PAGE), 2 * PAGE, HostVirtual(process.address + 3 * PAGE)),
            Run(FileOffset(200 * PAGE), 10 * PAGE, HostVirtual(process.address + 200 * PAGE)),
        ]


@pytest.mark.parametrize("count", [511, 512, 513, 1500, pytest.param(32_768, marks=pytest.mark.slow), 33_000])
def test_many_scattered_pages_are_each_listed_once(tmp_path: Path, count: int) -> None:
    # More runs than the kernel's inner buffer (512) and than ours (32,768): either could repeat or drop some.
    mem, out = tmp_path / "mem", tmp_path / "out"
    make_mem_file(mem, set(), pages=2 * count)
    with mapping_process(mem) as process:
        mappings = find_mapping(process.pid, identity_of(mem))
        process.tell("scatter", 0, count, 2 * PAGE)
        runs = changed_runs_by_pagemap(process.pid, mappings)
        assert pages_of(runs) == list(range(0, 2 * count, 2))
        assert scan_or_skip(process.pid, mappings) == runs
        if count < 2000:
            write_captured(mem, process.pid, runs, out)
            assert out.read_bytes() == process.view(0, 2 * count * PAGE)


def test_a_swapped_page_has_changed(mem: Path) -> None:
    if len(Path("/proc/swaps").read_text().splitlines()) < 2:
        pytest.skip("this machine has no swap")
    with mapping_process(mem) as process:
        mappings = find_mapping(process.pid, identity_of(mem))
        process.write_page(7, 1, pages=20)
        process.tell("pageout", 7 * PAGE, 20 * PAGE)
        assert pages_of(changed_runs_by_pagemap(process.pid, mappings)) == list(range(7, 27))
        assert pages_of(scan_or_skip(process.pid, mappings)) == list(range(7, 27))


def test_what_is_mapped_over_the_file_has_changed_and_its_absent_pages_are_zeros(
    mem: Path, tmp_path: Path
) -> None:
    with mapping_process(mem) as process:
        mappings = find_mapping(process.pid, identity_of(mem))
        process.tell("cover", 90 * PAGE, 20 * PAGE)
        process.write_page(95, 5)
        process.tell("unmap", 250 * PAGE, 6 * PAGE)
        process.tell("overlay", 40 * PAGE, 2 * PAGE)
        process.tell("shift", 60 * PAGE, 3 * PAGE, value=99 * PAGE)
        runs = changed_runs(process.pid, mappings)
        assert sorted(pages_of(runs)) == [40, 41, 60, 61, 62, *range(90, 110), *range(250, 256)]
        read = [run for run in runs if run.host_start is not None]
        assert pages_of(read) == [40, 41, 60, 61, 62, 95]
        write_captured(mem, process.pid, runs, tmp_path / "out")
        seen = process.view(0, 250 * PAGE)
    assert (tmp_path / "out").read_bytes() == seen + bytes(6 * PAGE)


def test_pages_of_zeros_become_holes(tmp_path: Path) -> None:
    mem, out = tmp_path / "mem", tmp_path / "out"
    make_mem_file(mem, set(range(1024)), pages=4096)
    with mapping_process(mem) as process:
        mappings = find_mapping(process.pid, identity_of(mem))
        process.write_page(0, 0, pages=1000)
        process.write_page(2000, 0, pages=1000)
        made = write_captured(mem, process.pid, changed_runs(process.pid, mappings), out)
    assert made.changed_bytes == 2000 * PAGE
    if allocated_bytes(mem) > 1100 * PAGE:
        pytest.skip("this filesystem keeps no holes")
    assert made.allocated_bytes <= 32 * PAGE
    assert out.read_bytes() == bytes(1000 * PAGE) + mem.read_bytes()[1000 * PAGE :]


def test_a_capture_on_a_filesystem_with_reflinks_leaves_its_base_alone(xfs: Path) -> None:
    mem, out = xfs / "mem", xfs / "out"
    make_mem_file(mem, set(range(64)))
    before = mem.read_bytes()
    with mapping_process(mem) as process:
        mappings = find_mapping(process.pid, identity_of(mem))
        process.write_page(0, 0, pages=16)
        process.write_page(30, 200, pages=100)
        write_captured(mem, process.pid, changed_runs(process.pid, mappings), out)
        assert out.read_bytes() == process.view(0, SIZE)
    assert mem.read_bytes() == before


def test_neighbouring_areas_that_only_flags_keep_apart_are_one_mapping(mem: Path) -> None:
    with mapping_process(mem) as process:
        process.tell("unmap", 100 * PAGE, 10 * PAGE)
        mappings = find_mapping(process.pid, identity_of(mem))
        identity = identity_of(mem)
        assert mappings == [
            Mapping(HostVirtual(process.address), 100 * PAGE, FileOffset(0), identity),
            Mapping(HostVirtual(process.address + 110 * PAGE), 146 * PAGE, FileOffset(110 * PAGE), identity),
        ]


def test_identity_is_what_stat_says_on_an_ordinary_filesystem(xfs: Path) -> None:
    path = xfs / "identity"
    path.write_bytes(b"x" * 3 * PAGE)
    assert identity_of(path) == (path.stat().st_dev, path.stat().st_ino)


def test_a_process_that_does_not_map_the_file_or_maps_it_shared_is_refused(mem: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    make_mem_file(other, {1})
    with mapping_process(mem) as process, pytest.raises(WrongStateError, match="doesn't map"):
        find_mapping(process.pid, identity_of(other))
    with mapping_process(mem, "shared") as process, pytest.raises(WrongStateError, match="shared"):
        find_mapping(process.pid, identity_of(mem))


def test_a_process_that_has_ended_is_said_to_have_ended(mem: Path, tmp_path: Path) -> None:
    with mapping_process(mem) as process:
        mappings = find_mapping(process.pid, identity_of(mem))
        process.write_page(1, 1)
        runs = changed_runs(process.pid, mappings)
        process.end()
        for attempt in (
            lambda: find_mapping(process.pid, identity_of(mem)),
            lambda: changed_runs(process.pid, mappings),
            lambda: write_captured(mem, process.pid, runs, tmp_path / "out"),
        ):
            with pytest.raises(VmmError, match="has ended"):
                attempt()
    assert [path.name for path in tmp_path.iterdir()] == ["mem"]


def test_memory_that_is_gone_by_the_time_it_is_read_is_said_to_be(mem: Path, tmp_path: Path) -> None:
    with mapping_process(mem) as process:
        mappings = find_mapping(process.pid, identity_of(mem))
        process.write_page(10, 1, pages=100)
        runs = changed_runs(process.pid, mappings)
        process.tell("unmap", 50 * PAGE, PAGE)
        with pytest.raises(WrongStateError, match=f"{process.address + 50 * PAGE:#x}"):
            write_captured(mem, process.pid, runs, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["mem"]


def test_a_run_outside_the_mem_file_is_refused(mem: Path, tmp_path: Path) -> None:
    with mapping_process(mem) as process:
        beyond = Run(FileOffset(SIZE), PAGE, HostVirtual(process.address))
        with pytest.raises(UsageError, match="outside"):
            write_mem_file(tmp_path / "out", LivePages(process.pid, [beyond]), memory_bytes=SIZE)
    assert [path.name for path in tmp_path.iterdir()] == ["mem"]


@pytest.mark.proves("I1")
def test_over_its_own_base_the_old_inode_lives_on_as_it_was(mem: Path, tmp_path: Path) -> None:
    """A fork that becomes a template: siblings have the old inode linked and mapped (I1)."""
    (tmp_path / "sibling").hardlink_to(mem)
    before = mem.read_bytes()
    with mapping_process(mem) as process:
        mappings = find_mapping(process.pid, identity_of(mem))
        process.write_page(0, 7)
        write_captured(mem, process.pid, changed_runs(process.pid, mappings), mem)
    assert (tmp_path / "sibling").read_bytes() == before
    assert mem.read_bytes() != before
    assert mem.stat().st_ino != (tmp_path / "sibling").stat().st_ino


def test_no_space_is_said_and_nothing_is_left(mem: Path, tmp_path: Path, full: Path) -> None:
    big = tmp_path / "big"
    make_mem_file(big, set(), pages=2048)
    with mapping_process(big) as process:
        mappings = find_mapping(process.pid, identity_of(big))
        process.write_page(0, 1, pages=1024)
        with pytest.raises(FilesystemError, match="free some space"):
            write_captured(big, process.pid, changed_runs(process.pid, mappings), full / "out")
    assert list(full.iterdir()) == []


def as_nobody(attempt: Callable[[], object]) -> str:
    """The name of the ramet error, with its hint, that an unprivileged process gets; else what it got."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            answer = f"no error: {attempt()}"
        except RametError as error:
            answer = f"{type(error).__name__}: {error}"
        except BaseException as error:
            answer = f"foreign error: {error!r}"
        os.write(writer, answer.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answers:
        answer = answers.read().decode()
    os.waitpid(child, 0)
    return answer


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_a_process_of_somebody_else_is_not_readable_and_the_next_step_is_named() -> None:
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o777)
        mem = Path(place, "mem")
        make_mem_file(mem, {0})
        mem.chmod(0o644)
        with mapping_process(mem) as process:
            mappings = find_mapping(process.pid, identity_of(mem))
            process.write_page(1, 1)
            runs = changed_runs(process.pid, mappings)
            assert runs
            for attempt in (
                lambda: find_mapping(process.pid, identity_of(mem)),
                lambda: changed_runs(process.pid, mappings),
                lambda: write_captured(mem, process.pid, runs, Path(place, "out")),
            ):
                answer = as_nobody(attempt)
                assert answer.startswith("UnavailableError: can't")
                assert "ramet doctor" in answer
        assert [path.name for path in Path(place).iterdir()] == ["mem"]


def test_the_mapping_is_described_by_the_process_itself(mem: Path) -> None:
    with mapping_process(mem) as process:
        (mapping,) = find_mapping(process.pid, (mem.stat().st_dev, mem.stat().st_ino))
        assert (mapping.host_start, mapping.length_bytes, mapping.file_offset) == (process.address, SIZE, 0)
