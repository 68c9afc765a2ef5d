"""What the kernel says that a process's memory costs, against what the process is known to have done."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ramet.errors import VmmError
from ramet.memory.accounting import MemoryUse, mapping_use, smaps_rollup
from ramet.memory.mappings import find_mapping, identity_of
from ramet.units import MIB, PAGE_SIZE_BYTES
from tests.unit.memory.mapping_process import mapping_process, needs_linux

pytestmark = needs_linux

TOLERANCE_BYTES = 16 * PAGE_SIZE_BYTES


@pytest.fixture
def mem(tmp_path: Path) -> Path:
    path = tmp_path / "mem"
    path.write_bytes(b"\1" * 64 * MIB)
    return path


def close(measured_bytes: int, expected_bytes: int) -> bool:
    return abs(measured_bytes - expected_bytes) <= TOLERANCE_BYTES


def test_what_is_written_is_private_and_what_is_read_is_shared(mem: Path) -> None:
    with mapping_process(mem) as process, mapping_process(mem) as sibling:
        mappings = find_mapping(process.pid, identity_of(mem))
        assert mapping_use(process.pid, mappings) == MemoryUse()
        whole = smaps_rollup(process.pid)

        process.tell("write", 0, 24 * MIB, 9)
        for reader in (process, sibling):
            reader.tell("read", 32 * MIB, 16 * MIB)
        guest = mapping_use(process.pid, mappings)
        assert close(guest.private_dirty_bytes, 24 * MIB)
        # The kernel maps a file's neighbouring pages along with one that is read, so there can be a few more.
        assert 16 * MIB <= guest.shared_bytes <= 18 * MIB
        assert close(guest.rss_bytes, guest.private_dirty_bytes + guest.shared_bytes)
        assert 24 * MIB + 7 * MIB <= guest.pss_bytes <= 24 * MIB + 10 * MIB
        assert guest.swap_bytes == 0

        grown = smaps_rollup(process.pid)
        assert abs(grown.private_dirty_bytes - whole.private_dirty_bytes - 24 * MIB) <= MIB
        assert grown.rss_bytes >= guest.rss_bytes

        other = mapping_use(sibling.pid, find_mapping(sibling.pid, identity_of(mem)))
        assert other.private_dirty_bytes == 0


def test_what_is_mapped_over_a_part_is_counted_with_it(mem: Path) -> None:
    with mapping_process(mem) as process:
        mappings = find_mapping(process.pid, identity_of(mem))
        process.tell("cover", 8 * MIB, 8 * MIB)
        process.tell("write", 8 * MIB, 4 * MIB, 9)
        assert close(mapping_use(process.pid, mappings).private_dirty_bytes, 4 * MIB)


def test_only_the_mappings_asked_for_are_counted(mem: Path) -> None:
    with mapping_process(mem) as process:
        process.tell("write", 0, 8 * MIB, 9)
        assert mapping_use(process.pid, []) == MemoryUse()


def test_a_process_that_has_ended_or_waits_to_be_reaped_is_said_to_have_ended(mem: Path) -> None:
    with mapping_process(mem) as process:
        mappings = find_mapping(process.pid, identity_of(mem))
        process.process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        for _ in ("waiting to be reaped", "reaped"):
            with pytest.raises(VmmError, match="has ended"):
                smaps_rollup(process.pid)
            with pytest.raises(VmmError, match="has ended"):
                mapping_use(process.pid, mappings)
            process.end()
