"""Chains of qcow2 files: read with suspicion, made shorter without a byte of them changed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.disk.chains import (
    LONGEST_CHAIN,
    ImageFacts,
    backing_of,
    chain_of,
    find_qemu_img,
    flatten_chain,
    image_facts,
)
from ramet.disk.qcow2 import make_qcow2
from ramet.disk.volumes import files_of, make_disk, make_overlay, next_overlay
from ramet.errors import DamagedError, FilesystemError, RametError, UnavailableError
from ramet.model.record import Disk
from ramet.units import KIB, MIB
from tests.support.qemu_tools import content, needs_qemu_img, qemu_img, require_whole, write


def chain(directory: Path, length: int, size_bytes: int = 4 * MIB) -> Disk:
    disk = Disk(name="disk", file="disk-0.qcow2", format="qcow2", size_bytes=size_bytes)
    make_disk(directory, disk)
    for _ in range(length - 1):
        disk = next_overlay(disk, directory)
        make_overlay(directory, disk)
    return disk


def named(path: Path, name: bytes) -> None:
    """Have an overlay lie over another file."""
    with path.open("r+b") as file:
        head = file.read(20)
        offset, _length = struct.unpack(">QI", head[8:20])
        file.seek(16)
        file.write(struct.pack(">I", len(name)))
        file.seek(offset)
        file.write(name)


def test_a_chain_is_read_the_lowest_first(tmp_path: Path) -> None:
    disk = chain(tmp_path, 5)
    assert chain_of(tmp_path, disk.file) == files_of(disk)
    assert chain_of(tmp_path, "disk-2.qcow2") == ("disk-0.qcow2", "disk-1.qcow2", "disk-2.qcow2")
    assert backing_of(tmp_path / disk.file) == "disk-3.qcow2"
    assert image_facts(tmp_path / "disk-0.qcow2") == ImageFacts(4 * MIB, None)


@needs_qemu_img
def test_what_qemu_itself_wrote_is_read(tmp_path: Path) -> None:
    for version in ("0.10", "1.1"):
        qemu_img("create", "-q", "-f", "qcow2", "-o", f"compat={version}", tmp_path / "low", "8M")
        qemu_img("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "low", tmp_path / "high")
        assert chain_of(tmp_path, "high") == ("low", "high")
        assert image_facts(tmp_path / "high").size_bytes == 8 * MIB
    # Over a raw file, and over one whose format isn't said.
    qemu_img("create", "-q", "-f", "qcow2", "-F", "raw", "-b", "low", tmp_path / "over-raw")
    with pytest.raises(DamagedError, match="doesn't say"):
        backing_of(tmp_path / "over-raw")
    external = f"data_file={tmp_path / 'elsewhere'}"
    qemu_img("create", "-q", "-f", "qcow2", "-o", external, tmp_path / "external", "8M")
    with pytest.raises(DamagedError, match="features"):
        backing_of(tmp_path / "external")


@pytest.mark.parametrize(
    "name",
    [
        *(b"/etc/shadow", b"../disk-0.qcow2", b"a/b", b"json:{}", b"nbd:x:1", b"file:x", b"", b".", b".."),
        *(b".hidden", b"-rf", b"a\0b", b"a b", b"\xff", b"x" * 300),
    ],
)
def test_a_chain_leads_nowhere_else(tmp_path: Path, name: bytes) -> None:
    disk = chain(tmp_path, 2)
    named(tmp_path / disk.file, name)
    with pytest.raises(DamagedError, match=r"disk-1\.qcow2"):
        chain_of(tmp_path, disk.file)


def test_a_link_is_not_followed_and_a_fifo_not_waited_for(tmp_path: Path) -> None:
    disk = chain(tmp_path, 2)
    (tmp_path / "disk-0.qcow2").rename(tmp_path / "elsewhere")
    (tmp_path / "disk-0.qcow2").symlink_to("elsewhere")
    with pytest.raises(FilesystemError):
        chain_of(tmp_path, disk.file)
    (tmp_path / "disk-0.qcow2").unlink()
    with pytest.raises(DamagedError, match="missing") as caught:
        chain_of(tmp_path, disk.file)
    assert "`ramet snapshot verify`" in (caught.value.hint or ""), "each error has a next step"
    os.mkfifo(tmp_path / "disk-0.qcow2")
    with pytest.raises(FilesystemError):
        chain_of(tmp_path, disk.file)


def test_rings_and_endless_chains_are_refused(tmp_path: Path) -> None:
    disk = chain(tmp_path, 3)
    named(tmp_path / "disk-2.qcow2", b"disk-2.qcow2")
    with pytest.raises(DamagedError, match="lies over it"):
        chain_of(tmp_path, disk.file)
    make_qcow2(tmp_path / "one", MIB, backing="two")
    make_qcow2(tmp_path / "two", MIB, backing="one")
    with pytest.raises(DamagedError, match="lies over it"):
        chain_of(tmp_path, "one")
    (tmp_path / "long").mkdir()
    longest = chain(tmp_path / "long", LONGEST_CHAIN, MIB)
    assert len(chain_of(tmp_path / "long", longest.file)) == LONGEST_CHAIN
    over = next_overlay(longest)
    make_overlay(tmp_path / "long", over)
    with pytest.raises(DamagedError, match="more than"):
        chain_of(tmp_path / "long", over.file)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.integers(0, 199), st.binary(min_size=1, max_size=24), st.integers(0, 400))
def test_no_header_does_more_than_be_refused(
    tmp_path_factory: pytest.TempPathFactory, at: int, put: bytes, length: int
) -> None:
    place = tmp_path_factory.mktemp("header")
    try:
        disk = chain(place, 2, MIB)
        with (place / disk.file).open("r+b") as file:
            file.seek(at)
            file.write(put)
            if length < 200:
                file.truncate(length)
        try:
            found = image_facts(place / disk.file)
        except RametError:
            return
        assert found.backing is None or "/" not in found.backing
    finally:
        shutil.rmtree(place)


@pytest.mark.proves("I1")
@needs_qemu_img
def test_a_chain_made_shorter_has_the_same_content(tmp_path: Path) -> None:
    chance = random.Random(5)
    disk = chain(tmp_path, 1, 16 * MIB)
    expected = bytearray(16 * MIB)
    for number in range(1, 9):
        for _ in range(4):
            offset, length = 4096 * chance.randrange(4000), 4096 * chance.randrange(1, 90)
            length = min(length, 16 * MIB - offset)
            write(tmp_path / disk.file, offset, number, length)
            expected[offset : offset + length] = bytes([number]) * length
        frozen, disk = disk, next_overlay(disk, tmp_path)
        make_overlay(tmp_path, disk)
    files = files_of(frozen)
    assert len(files) == 8
    before = {name: (tmp_path / name).read_bytes() for name in files}
    out = tmp_path / "flat.qcow2"
    flatten_chain(tmp_path, files, out)
    assert {name: (tmp_path / name).read_bytes() for name in files} == before, "I1"
    assert chain_of(tmp_path, out.name) == (out.name,)
    assert out.stat().st_mode & 0o777 == 0o444
    require_whole(out)
    assert content(out, tmp_path / "raw") == expected
    with pytest.raises(FilesystemError, match="exists"):
        flatten_chain(tmp_path, files, out)
    with pytest.raises(DamagedError, match="other files"):
        flatten_chain(tmp_path, files[1:], tmp_path / "other")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".tmp-")]


@needs_qemu_img
def test_a_flattening_that_fails_leaves_nothing(
    tmp_path: Path, full: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = chain(tmp_path, 2, 64 * MIB)
    write(tmp_path / disk.file, 0, 7, 32 * MIB)
    before = sorted(full.iterdir())
    with pytest.raises(FilesystemError, match="No space"):
        flatten_chain(tmp_path, files_of(disk), full / "flat")
    assert sorted(full.iterdir()) == before
    monkeypatch.setattr("ramet.disk.chains._CONVERT_BASE_S", 0.0)
    monkeypatch.setattr("ramet.disk.chains._CONVERT_BYTES_A_S", 1024 * MIB * KIB)
    with pytest.raises(FilesystemError, match="too long"):
        flatten_chain(tmp_path, files_of(disk), tmp_path / "flat")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnavailableError, match="qemu-img"):
        flatten_chain(tmp_path, files_of(disk), tmp_path / "flat")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(files_of(disk))


@needs_qemu_img
@pytest.mark.parametrize("size_kib", [512, 900])
def test_a_full_disk_publishes_nothing_though_nobody_is_told_how_qemu_img_ended(
    tmp_path: Path, full: Path, size_kib: int
) -> None:
    """Where SIGCHLD is ignored the kernel throws exit statuses away. qemu-img's file looks whole then."""
    disk = chain(tmp_path, 2, 64 * MIB)
    write(tmp_path / disk.file, 0, 7, 32 * MIB)
    (full / "ballast").write_bytes(bytes(KIB * (1024 - size_kib - 64)))
    before = sorted(full.iterdir())
    ignored = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with pytest.raises(FilesystemError, match="No space"):
            flatten_chain(tmp_path, files_of(disk), full / "flat")
        assert sorted(full.iterdir()) == before
        flatten_chain(tmp_path, files_of(disk), tmp_path / "flat")
    finally:
        signal.signal(signal.SIGCHLD, ignored)
    require_whole(tmp_path / "flat")
    expected = bytes([7]) * (32 * MIB) + bytes(32 * MIB)
    assert content(tmp_path / "flat", tmp_path / "raw") == expected


@needs_qemu_img
def test_what_is_not_the_chains_content_is_never_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever qemu-img says of itself: here a wrapper around the real one damages what it has made."""
    disk = chain(tmp_path, 2, 4 * MIB)
    write(tmp_path / disk.file, 0, 7, MIB)
    real = find_qemu_img()
    wrapper = tmp_path / "bin" / "qemu-img"
    wrapper.parent.mkdir()
    wrapper.write_text(
        f'#!/bin/sh\n{real} "$@" || exit\n[ $1 = convert ] || exit 0\nfor out; do :; done\n'
        'printf x | dd of="$out" bs=1 seek=400000 conv=notrunc 2>/dev/null\n'
    )
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")
    with pytest.raises(FilesystemError, match="Content mismatch"):
        flatten_chain(tmp_path, files_of(disk), tmp_path / "flat")
    assert not (tmp_path / "flat").exists()
