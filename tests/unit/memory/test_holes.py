"""Holes dug into a file: fewer blocks, the same content."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.errors import FilesystemError
from ramet.memory.holes import punch_holes
from ramet.system.files import allocated_bytes
from ramet.units import MIB, PAGE_SIZE_BYTES

_PIECES = st.lists(
    st.tuples(st.sampled_from(["zeros", "data", "hole"]), st.integers(1, 700)), min_size=1, max_size=12
)


@settings(max_examples=60, deadline=None)
@given(_PIECES, st.integers(0, PAGE_SIZE_BYTES - 1))
def test_the_content_stays_and_zeros_go(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[tuple[str, int]], tail: int
) -> None:
    path = tmp_path_factory.mktemp("holes") / "mem"
    expected = bytearray()
    data_pages = 0
    with path.open("wb") as file:
        for kind, pages in pieces:
            length = pages * PAGE_SIZE_BYTES
            if kind == "hole":
                file.seek(length, os.SEEK_CUR)
                expected += bytes(length)
            else:
                piece = bytes(length) if kind == "zeros" else (b"\0" * 100 + b"x") * (length // 101)
                piece = piece.ljust(length, b"\0")
                file.write(piece)
                expected += piece
                data_pages += pages if kind == "data" else 0
        file.write(b"\0" * tail)
        expected += bytes(tail)
        file.truncate(len(expected))
    occupied = punch_holes(path)
    assert path.read_bytes() == expected
    assert occupied == allocated_bytes(path)
    # A filesystem may keep a block of its own for where they are.
    assert occupied <= (data_pages + 1) * PAGE_SIZE_BYTES + 64 * 1024


def test_a_file_of_zeros_occupies_nothing(tmp_path: Path) -> None:
    path = tmp_path / "mem"
    path.write_bytes(bytes(5 * MIB + 3))
    assert punch_holes(path) == 0
    assert path.stat().st_size == 5 * MIB + 3


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FilesystemError, match="mem"):
        punch_holes(tmp_path / "mem")
