"""Pages on their way: copied while a process is paused, or read as they are written."""

from __future__ import annotations

import gc
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ramet.errors import UnavailableError, VmmError, WrongStateError
from ramet.memory import accounting
from ramet.memory import pages as pages_module
from ramet.memory.accounting import smaps_rollup
from ramet.memory.mappings import identity_of
from ramet.memory.pagemap import Run
from ramet.memory.pages import BUFFER_BYTES, LivePages, Pages, buffer_pages
from ramet.memory.ram import changed_pages, locate_ram
from ramet.units import MIB, PAGE_SIZE_BYTES, FileOffset, HostVirtual
from tests.unit.memory.mapping_process import MappingProcess, mapping_process, needs_linux
from tests.unit.memory.test_capture import make_mem_file

pytestmark = needs_linux

PAGE = PAGE_SIZE_BYTES
PAGES = 4096
SIZE = PAGES * PAGE


@pytest.fixture
def mem(tmp_path: Path) -> Path:
    path = tmp_path / "mem"
    make_mem_file(path, {0, 1, 2, 100}, pages=PAGES)
    return path


def changes(process: MappingProcess, mem: Path) -> list[Run]:
    identity = identity_of(mem)
    return changed_pages(process.pid, locate_ram(process.pid, mem=identity, regions=[SIZE]), identity)


def with_pages(content: bytes, pages: Pages) -> bytes:
    new = bytearray(content)
    behind = 0
    for batch in pages.batches():
        for offset, length, data in batch:
            assert offset >= behind, "they ascend, none twice"
            behind = offset + length
            new[offset:behind] = bytes(length) if data is None else data
    return bytes(new)


def test_both_kinds_give_what_the_process_has(mem: Path) -> None:
    before = mem.read_bytes()
    with mapping_process(mem) as process:
        process.tell("scatter", 0, 1100, 2 * PAGE)  # more than one vector
        process.write_page(2500, 7, pages=1300)  # more than one buffer
        process.write_page(2600, 0, pages=600)
        process.write_page(3900, 0, pages=3)
        runs = list(reversed(changes(process, mem)))
        assert sum(run.length_bytes for run in runs) > BUFFER_BYTES
        seen = process.view(0, SIZE)
        with buffer_pages(process.pid, runs) as buffered:
            assert with_pages(before, LivePages(process.pid, runs)) == seen
            process.write_page(0, 99, pages=PAGES)
            assert with_pages(before, buffered) == seen, "what it does later isn't buffered"
            assert with_pages(before, buffered) == seen, "any number of times"
            zeros = sum(length for batch in buffered.batches() for _, length, data in batch if data is None)
            assert zeros == 603 * PAGE
            assert buffered.changed_bytes == LivePages(process.pid, runs).changed_bytes == 2403 * PAGE
            assert 0 <= buffered.buffered_bytes - buffered.changed_bytes < 2 * MIB


def test_nothing_changed_is_nothing_to_copy(mem: Path) -> None:
    with mapping_process(mem) as process, buffer_pages(process.pid, changes(process, mem)) as buffered:
        assert list(buffered.batches()) == []
        assert buffered.buffered_bytes == buffered.changed_bytes == 0


def resident_bytes() -> int:
    """Of this process. Counted page by page: what statm tells lags behind."""
    return smaps_rollup(os.getpid()).rss_bytes


def test_closing_gives_the_memory_back(mem: Path) -> None:
    with mapping_process(mem) as process:
        process.write_page(0, 1, pages=PAGES)
        runs = changes(process, mem)
        gc.collect()
        before = resident_bytes()
        buffered = buffer_pages(process.pid, runs)
        held = resident_bytes()
        assert held - before >= SIZE // 2
        assert next(buffered.batches())[0].length_bytes == SIZE
        buffered.close()
        buffered.close()
        assert held - resident_bytes() >= SIZE // 2


def test_it_works_in_a_worker_thread(mem: Path) -> None:
    with mapping_process(mem) as process, ThreadPoolExecutor(1) as pool:
        process.write_page(9, 5, pages=700)
        with pool.submit(buffer_pages, process.pid, changes(process, mem)).result(timeout=30) as buffered:
            seen = process.view(0, SIZE)
            assert pool.submit(with_pages, mem.read_bytes(), buffered).result(timeout=30) == seen


def test_what_can_not_be_read_is_said_and_nothing_is_kept(mem: Path) -> None:
    with mapping_process(mem) as process:
        process.write_page(0, 1, pages=PAGES)
        runs = changes(process, mem)
        process.tell("unmap", 50 * PAGE, PAGE)
        before = resident_bytes()
        for attempt in (buffer_pages, lambda pid, runs: list(LivePages(pid, runs).batches())):
            with pytest.raises(WrongStateError, match=f"{process.address + 50 * PAGE:#x}"):
                attempt(process.pid, runs)
        gc.collect()
        assert resident_bytes() - before < SIZE // 2
        process.end()
        with pytest.raises(VmmError, match="has ended"):
            buffer_pages(process.pid, runs)


def test_more_than_there_is_memory_for_is_refused_before_it_is_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert accounting.available_bytes() > 64 * MIB
    monkeypatch.setattr(pages_module, "available_bytes", lambda: 100 * MIB)
    run = Run(FileOffset(0), 101 * MIB, HostVirtual(0))
    with pytest.raises(UnavailableError, match="needs more memory"):
        buffer_pages(os.getpid(), [run])
