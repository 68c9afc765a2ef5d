"""Facts that are checked before a fork, and a digest that content alone decides."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.errors import DamagedError, FilesystemError
from ramet.memory.integrity import DIGEST_BLOCK_BYTES, check, digest, facts_of
from ramet.system.files import allocated_bytes
from ramet.units import GIB, MIB

offsets = st.integers(0, 8).map(lambda block: block * DIGEST_BLOCK_BYTES) | st.integers(
    0, 9 * DIGEST_BLOCK_BYTES
)
extents = st.lists(
    st.tuples(offsets, st.binary(min_size=1, max_size=5000) | st.integers(1, 200_000).map(bytes)), max_size=8
)
sizes = st.integers(0, 10 * DIGEST_BLOCK_BYTES)


def make(path: Path, size: int, written: list[tuple[int, bytes]]) -> bytes:
    with path.open("wb") as file:
        for offset, data in written:
            file.seek(offset)
            file.write(data)
        file.truncate(size)
    return path.read_bytes()


def by_the_book(content: bytes) -> str:
    """The digest as its docstring defines it, without any care for holes."""
    total = hashlib.sha256(len(content).to_bytes(8, "little"))
    for index, start in enumerate(range(0, len(content), DIGEST_BLOCK_BYTES)):
        block = content[start : start + DIGEST_BLOCK_BYTES].ljust(DIGEST_BLOCK_BYTES, b"\0")
        if block.strip(b"\0"):
            total.update(index.to_bytes(8, "little") + block)
    return f"sparse-sha256:{total.hexdigest()}"


@settings(max_examples=80, deadline=None)
@given(size=sizes, written=extents)
def test_the_digest_is_the_one_defined_whatever_the_layout(
    size: int, written: list[tuple[int, bytes]]
) -> None:
    with tempfile.TemporaryDirectory() as place:
        sparse, dense = Path(place, "sparse"), Path(place, "dense")
        content = make(sparse, size, written)
        dense.write_bytes(content)
        assert digest(sparse) == digest(dense) == by_the_book(content)


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 10 * DIGEST_BLOCK_BYTES), written=extents, data=st.data())
def test_one_changed_byte_or_another_size_is_another_digest(
    size: int, written: list[tuple[int, bytes]], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "part")
        content = bytearray(make(path, size, written))
        before = digest(path)
        content[data.draw(st.integers(0, size - 1))] ^= data.draw(st.integers(1, 255))
        path.write_bytes(content)
        assert digest(path) != before
        make(path, size + 1, written)
        assert digest(path) != before


def test_a_last_block_that_is_cut_short_is_padded_with_zeros(tmp_path: Path) -> None:
    path = tmp_path / "part"
    path.write_bytes(b"x" * (2 * DIGEST_BLOCK_BYTES + 100))
    assert digest(path) == by_the_book(path.read_bytes())


def test_a_block_that_moved_is_another_digest(tmp_path: Path) -> None:
    path = tmp_path / "part"
    seen = set()
    for block in range(4):
        make(path, 4 * DIGEST_BLOCK_BYTES, [(block * DIGEST_BLOCK_BYTES, b"x")])
        seen.add(digest(path))
    assert len(seen) == 4


@pytest.mark.timing
def test_holes_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "part"
    with path.open("wb") as file:
        file.truncate(1024 * GIB)
        file.seek(512 * GIB)
        file.write(b"x" * MIB)
    if allocated_bytes(path) > 64 * MIB:
        pytest.skip("this filesystem keeps no holes")
    begun = time.monotonic()
    digest(path)
    # Reading it would take minutes at the best.
    assert time.monotonic() - begun < 10


def test_facts_that_still_hold_pass(tmp_path: Path) -> None:
    path = tmp_path / "mem"
    make(path, MIB, [(0, b"x")])
    facts = facts_of(path)
    os.link(path, tmp_path / "fork")
    check(tmp_path / "fork", facts)
    check(path, facts)


def test_every_fact_that_differs_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mem"
    make(path, MIB, [(0, b"x" * 8192)])
    facts = facts_of(path)
    path.chmod(0o644 if facts.mode != 0o644 else 0o600)
    with pytest.raises(DamagedError, match=rf"mem has changed.*: mode is \d{{4}}, was {facts.mode:04o}"):
        check(path, facts)
    path.chmod(facts.mode)
    os.utime(path, ns=(0, facts.mtime_ns + 1))
    with pytest.raises(DamagedError, match=f": mtime_ns is {facts.mtime_ns + 1}, was {facts.mtime_ns}"):
        check(path, facts)
    os.truncate(path, 100)
    os.utime(path, ns=(0, facts.mtime_ns))
    with pytest.raises(DamagedError, match=f"size_bytes is 100, was {MIB}"):
        check(path, facts)


def test_a_file_that_lost_its_data_behind_its_times_is_found_by_its_blocks(tmp_path: Path) -> None:
    path = tmp_path / "mem"
    with path.open("wb") as file:
        file.write(b"x" * MIB)
        os.fsync(file.fileno())
    facts = facts_of(path)
    os.truncate(path, 0)
    os.truncate(path, MIB)
    os.utime(path, ns=(0, facts.mtime_ns))
    if allocated_bytes(path) == facts.allocated_bytes:
        pytest.skip("this filesystem keeps no holes")
    with pytest.raises(DamagedError, match="allocated_bytes"):
        check(path, facts)


def test_a_missing_file_and_one_that_is_no_file_are_damaged(tmp_path: Path) -> None:
    path = tmp_path / "mem"
    make(path, MIB, [])
    facts = facts_of(path)
    path.unlink()
    with pytest.raises(DamagedError, match="missing"):
        check(path, facts)
    path.symlink_to("elsewhere")
    with pytest.raises(DamagedError, match="regular"):
        check(path, facts)
    with pytest.raises(FilesystemError):
        digest(path)
