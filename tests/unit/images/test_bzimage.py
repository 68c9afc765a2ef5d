"""Getting the ELF out of a bzImage, whatever it was compressed with, and refusing what isn't whole."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
from collections.abc import Callable
from pathlib import Path

import lz4.block
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from ramet.errors import DamagedError, RametError, UnavailableError
from ramet.images.bzimage import has_pvh_entry, read_kernel_version, unpack_vmlinux
from tests.unit.images.kernel_formats import PT_NOTE, PVH_NOTE, make_bzimage, make_elf

ELF = make_elf(segments=[(PT_NOTE, PVH_NOTE)], sections={b".text": b"text" * 9000})


def lz4_legacy(data: bytes) -> bytes:
    block: bytes = lz4.block.compress(data, store_size=False)
    return bytes.fromhex("02214c18") + struct.pack("<I", len(block)) + block


def with_size(compress: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    return lambda data: compress(data) + struct.pack("<I", len(data))


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "none": bytes,
    "gzip": gzip.compress,
    "xz": with_size(lzma.compress),
    "lzma": with_size(lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE)),
    "bzip2": with_size(bz2.compress),
    "zstd": with_size(zstandard.compress),
    "lz4": with_size(lz4_legacy),
}


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_elf_comes_out_of_every_compression(compression: str) -> None:
    assert unpack_vmlinux(make_bzimage(COMPRESSIONS[compression](ELF))) == ELF


@pytest.mark.parametrize("compression", [name for name in COMPRESSIONS if name != "none"])
def test_cut_payload_is_damaged(compression: str) -> None:
    payload = COMPRESSIONS[compression](ELF)
    with pytest.raises(DamagedError):
        unpack_vmlinux(make_bzimage(payload[: len(payload) // 2]))


@pytest.mark.parametrize("compression", [name for name in COMPRESSIONS if name != "none"])
def test_output_is_bounded(compression: str) -> None:
    image = make_bzimage(COMPRESSIONS[compression](ELF))
    assert unpack_vmlinux(image, limit_bytes=len(ELF)) == ELF
    with pytest.raises(DamagedError, match="more than"):
        unpack_vmlinux(image, limit_bytes=len(ELF) - 1)


def test_file_shorter_than_its_header_says() -> None:
    with pytest.raises(DamagedError, match="cut short"):
        unpack_vmlinux(make_bzimage(gzip.compress(ELF))[:-1])


def test_reasons_for_not_unpacking() -> None:
    with pytest.raises(UnavailableError, match="neither a bzImage nor an ELF"):
        unpack_vmlinux(b"#!/bin/sh\n" * 100)
    with pytest.raises(UnavailableError, match=r"2\.08"):
        unpack_vmlinux(make_bzimage(gzip.compress(ELF), protocol=0x207))
    with pytest.raises(UnavailableError, match="compression"):
        unpack_vmlinux(make_bzimage(b"\x89LZO" + bytes(64)))
    with pytest.raises(DamagedError, match="not an ELF"):
        unpack_vmlinux(make_bzimage(gzip.compress(b"no kernel at all")))


def test_pvh_note_is_found_among_others() -> None:
    other = struct.pack("<III4sI", 4, 4, 1, b"GNU\0", 0)
    assert has_pvh_entry(make_elf(segments=[(1, b"code"), (PT_NOTE, other + PVH_NOTE)]))
    assert not has_pvh_entry(make_elf(segments=[(PT_NOTE, other)]))
    assert not has_pvh_entry(make_elf(segments=[(1, PVH_NOTE)]))


@given(st.binary(max_size=200), st.integers(0, 400))
def test_mangled_elf_never_raises_anything_else(noise: bytes, at: int) -> None:
    mangled = bytearray(make_elf(segments=[(PT_NOTE, PVH_NOTE)], sections={b".text": b"text"}))
    mangled[at : at + len(noise)] = noise
    try:
        has_pvh_entry(bytes(mangled))
    except RametError:
        pass


def test_version_of_both_kinds(tmp_path: Path) -> None:
    (tmp_path / "bz").write_bytes(make_bzimage(gzip.compress(ELF), version="6.12.3+deb13-cloud-amd64"))
    assert read_kernel_version(tmp_path / "bz") == "6.12.3+deb13-cloud-amd64"
    (tmp_path / "elf").write_bytes(make_elf(sections={b".data": b"..Linux version 5.10.9-fc (root@b) ..."}))
    assert read_kernel_version(tmp_path / "elf") == "5.10.9-fc"
    (tmp_path / "neither").write_bytes(b"plain text")
    with pytest.raises(DamagedError, match="not a Linux kernel"):
        read_kernel_version(tmp_path / "neither")
