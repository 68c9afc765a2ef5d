"""Compressed memory as bytes: what comes out is what went in, or it is refused."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.errors import DamagedError
from ramet.memory import compressed
from ramet.memory.compressed import (
    FRAME_BYTES,
    Frames,
    length_at,
    pack,
    read_table,
    starts,
    table,
    unpack_into,
)
from ramet.memory.integrity import SparseDigest, digest
from ramet.system.files import allocated_bytes
from ramet.units import KIB, MIB

SIZE_BYTES = 3 * FRAME_BYTES + 68 * KIB


def raw_file(path: Path, written: dict[int, bytes], size_bytes: int = SIZE_BYTES) -> Path:
    with path.open("xb") as file:
        file.truncate(size_bytes)
        for offset, data in written.items():
            os.pwrite(file.fileno(), data, offset)
    return path


def compress(raw: Path, packed: Path, level: int = 3) -> str:
    """The compressed file, and the digest that was taken of what went in."""
    size_bytes = raw.stat().st_size
    total, frames = SparseDigest(size_bytes), []
    with raw.open("rb") as source:
        for start in starts(size_bytes):
            frame, data = pack(source.fileno(), start, length_at(start, size_bytes), level)
            frames.append(frame)
            if data is not None:
                total.stretch(start, data)
    packed.write_bytes(b"".join(frames) + table([len(frame) for frame in frames], size_bytes))
    return total.text


def decompress(packed: Path, out: Path, size_bytes: int = SIZE_BYTES) -> Path:
    with packed.open("rb") as source, out.open("xb") as target:
        target.truncate(size_bytes)
        for frame in read_table(source.fileno(), packed, size_bytes):
            unpack_into(source.fileno(), packed, frame, target.fileno())
    return out


CONTENT = {
    5 * KIB: os.urandom(9 * KIB),
    FRAME_BYTES - 3: b"over the edge",
    2 * FRAME_BYTES: bytes(8 * KIB) + b"behind zeros",
    SIZE_BYTES - 1: b"!",
}


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A compressed file."""
    path = tmp_path / "mem.zst"
    compress(raw_file(tmp_path / "raw", CONTENT), path)
    return path


@pytest.mark.parametrize("level", [1, 3, 19])
def test_it_comes_back_with_its_holes(tmp_path: Path, level: int) -> None:
    raw = raw_file(tmp_path / "mem", CONTENT)
    taken = compress(raw, tmp_path / "mem.zst", level)
    back = decompress(tmp_path / "mem.zst", tmp_path / "back")
    assert back.read_bytes() == raw.read_bytes()
    assert digest(back) == digest(raw) == taken
    assert allocated_bytes(back) <= allocated_bytes(raw)
    assert (tmp_path / "mem.zst").stat().st_size < 16 * KIB


def test_anybodys_zstd_reads_it(tmp_path: Path, packed: Path) -> None:
    """The table of frames is in a frame that readers skip."""
    if (zstd := shutil.which("zstd")) is None:
        pytest.skip("zstd isn't installed")
    done = subprocess.run([zstd, "-dcq", packed], capture_output=True, check=True, timeout=60)
    assert done.stdout == (tmp_path / "raw").read_bytes()


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 2 * FRAME_BYTES + 5),
    st.dictionaries(st.integers(0, 2 * FRAME_BYTES), st.binary(min_size=1, max_size=64), max_size=6),
)
def test_whatever_the_size_and_the_content(
    tmp_path_factory: pytest.TempPathFactory, size_bytes: int, written: dict[int, bytes]
) -> None:
    directory = tmp_path_factory.mktemp("any")
    inside = {at: data for at, data in written.items() if at + len(data) <= size_bytes}
    raw = raw_file(directory / "mem", inside, size_bytes)
    compress(raw, directory / "mem.zst")
    assert decompress(directory / "mem.zst", directory / "back", size_bytes).read_bytes() == raw.read_bytes()


def opened(packed: Path, size_bytes: int = SIZE_BYTES) -> Frames:
    with packed.open("rb") as source:
        return read_table(source.fileno(), packed, size_bytes)


def test_what_is_cut_is_refused(packed: Path) -> None:
    whole = packed.read_bytes()
    for length in (0, 1, 9, 40, len(whole) // 2, len(whole) - 1):
        packed.write_bytes(whole[:length])
        with pytest.raises(DamagedError, match=r"mem\.zst is damaged"):
            opened(packed)


@pytest.mark.parametrize("size_bytes", [1, SIZE_BYTES - 1, SIZE_BYTES + 1, SIZE_BYTES + FRAME_BYTES, 1 << 44])
def test_the_size_is_the_manifests(packed: Path, size_bytes: int) -> None:
    with pytest.raises(DamagedError):
        opened(packed, size_bytes)


def test_whatever_is_altered_is_noticed(tmp_path: Path, packed: Path) -> None:
    """By its table, by a frame's own checksum, or by the digest of what comes out."""
    whole, good = packed.read_bytes(), digest(tmp_path / "raw")
    for number, at in enumerate(range(0, len(whole), max(1, len(whole) // 150))):
        altered = bytearray(whole)
        altered[at] ^= 0x55
        packed.write_bytes(altered)
        try:
            came = digest(decompress(packed, tmp_path / f"out-{number}"))
        except DamagedError:
            continue
        # The head of a skippable frame's magic has 16 values, and zstd's header a reserved bit: what comes
        # out is what went in then.
        assert came == good


def test_a_frame_that_claims_more_than_it_may_allocates_nothing(tmp_path: Path, packed: Path) -> None:
    """A bomb: a frame of some bytes whose head says a TiB."""
    frames = opened(packed)
    bomb = zstandard.ZstdCompressor(level=1).compress(bytes(64 * MIB))
    assert len(bomb) < FRAME_BYTES
    content = packed.read_bytes()[frames[0].packed_bytes : frames[-1].packed_offset + frames[-1].packed_bytes]
    sizes = [len(bomb), *(frame.packed_bytes for frame in frames[1:])]
    packed.write_bytes(bomb + content + table(sizes, SIZE_BYTES))
    with pytest.raises(DamagedError, match="says that it has others"):
        decompress(packed, tmp_path / "out")


def test_a_file_that_is_shorter_than_it_was_is_not_compressed(tmp_path: Path) -> None:
    raw = raw_file(tmp_path / "mem", {0: b"x"}, 5 * KIB)
    with raw.open("rb") as source, pytest.raises(DamagedError, match="ends within"):
        pack(source.fileno(), 0, 8 * KIB, 3)


def test_a_frame_that_does_not_come_back_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that fails, or zstd: the raw file would be given up for it."""
    raw = raw_file(tmp_path / "mem", {0: b"x"}, 8 * KIB)
    real = compressed._unpacked

    def flipped(packed: bytes, length: int) -> bytes:
        return real(packed, length)[:-1] + b"\1"

    monkeypatch.setattr(compressed, "_unpacked", flipped)
    with raw.open("rb") as source, pytest.raises(DamagedError, match="doesn't come back"):
        pack(source.fileno(), 0, 8 * KIB, 3)
