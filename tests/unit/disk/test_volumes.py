"""Data disks: empty ones, and forks of frozen ones, as QEMU's own tools see them."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.disk.qcow2 import make_qcow2
from ramet.disk.volumes import (
    files_of,
    fork_disk,
    make_disk,
    make_overlay,
    next_overlay,
    snapshot_raw,
    uppermost,
)
from ramet.errors import DamagedError, FilesystemError
from ramet.model.record import Disk
from ramet.system.files import allocated_bytes
from ramet.units import GIB, KIB, MIB, TIB
from tests.support.qemu_tools import content, needs_qemu_img, qemu_img, require_whole, write


@needs_qemu_img
@settings(max_examples=25, deadline=None)
@given(st.sampled_from([512, MIB - 512, 64 * MIB, 3 * GIB + 512, 100 * GIB, 16 * TIB]))
def test_an_empty_one_is_what_qemu_would_make(tmp_path_factory: pytest.TempPathFactory, size: int) -> None:
    path = tmp_path_factory.mktemp("qcow2") / "disk.qcow2"
    make_qcow2(path, size)
    found = qemu_img("info", "--output=json", path)
    assert (found["format"], found["virtual-size"]) == ("qcow2", size)
    require_whole(path)
    assert allocated_bytes(path) <= 128 * KIB


@needs_qemu_img
def test_a_fork_lies_over_the_frozen_chain_and_copies_nothing(tmp_path: Path) -> None:
    disk = Disk(name="disk", file="disk-0.qcow2", format="qcow2", size_bytes=8 * MIB)
    homes = [tmp_path / f"home{number}" for number in range(4)]
    homes[0].mkdir()
    make_disk(homes[0], disk)
    expected = bytearray(8 * MIB)
    for number, (home, following) in enumerate(itertools.pairwise(homes), start=1):
        write(home / disk.file, number * MIB, number, MIB)
        expected[number * MIB : (number + 1) * MIB] = bytes([number]) * MIB
        following.mkdir()
        forked = fork_disk(home, following, disk)
        assert (forked.mode, forked.bytes_copied) == ("shared", 0)
        assert forked.disk.backing == files_of(disk)
        for name in files_of(disk):
            assert (home / name).samefile(following / name)
        disk = forked.disk
        # The fork needs nothing of its source's directory.
        shutil.rmtree(home)
        assert content(following / disk.file, tmp_path / "raw") == expected
        assert qemu_img("check", "--output=json", following / disk.file)["check-errors"] == 0
    assert files_of(disk) == ("disk-0.qcow2", "disk-1.qcow2", "disk-2.qcow2", "disk-3.qcow2")


@needs_qemu_img
def test_what_one_fork_writes_no_other_has(tmp_path: Path) -> None:
    disk = Disk(name="disk", file="disk-0.qcow2", format="qcow2", size_bytes=4 * MIB)
    source, one, other = (tmp_path / name for name in ("source", "one", "other"))
    for home in (source, one, other):
        home.mkdir()
    make_disk(source, disk)
    write(source / disk.file, 0, 1, MIB)
    before = (source / disk.file).read_bytes()
    tops = {home: fork_disk(source, home, disk).disk.file for home in (one, other)}
    write(one / tops[one], 0, 2, 4 * KIB)
    write(other / tops[other], 0, 3, 4 * KIB)
    assert content(one / tops[one], tmp_path / "raw")[: 8 * KIB] == b"\2" * 4 * KIB + b"\1" * 4 * KIB
    assert content(other / tops[other], tmp_path / "raw")[: 8 * KIB] == b"\3" * 4 * KIB + b"\1" * 4 * KIB
    assert (source / disk.file).read_bytes() == before


def test_a_raw_one_is_duplicated_and_says_how(tmp_path: Path) -> None:
    disk = Disk(name="disk", file="disk.raw", format="raw", size_bytes=4 * MIB)
    source, fork, copy = (tmp_path / name for name in ("source", "fork", "copy"))
    for home in (source, fork, copy):
        home.mkdir()
    make_disk(source, disk)
    with (source / disk.file).open("r+b") as file:
        file.seek(MIB)
        file.write(b"data" * KIB)
    (source / disk.file).chmod(0o444)
    forked = fork_disk(source, fork, disk)
    assert forked.mode in ("copied", "reflinked")
    assert forked.reason.startswith("a raw disk can't be linked: ")
    assert (fork / disk.file).read_bytes() == (source / disk.file).read_bytes()
    assert not (fork / disk.file).samefile(source / disk.file)
    assert (fork / disk.file).stat().st_mode & 0o777 == 0o600, "its VMM writes it"
    assert allocated_bytes(fork / disk.file) < MIB, "holes are kept"
    asked = fork_disk(source, copy, disk, share=False)
    assert (asked.mode, asked.reason) == ("copied", "asked for")


def test_nothing_is_written_over(tmp_path: Path) -> None:
    disk = Disk(name="disk", file="disk-0.qcow2", format="qcow2", size_bytes=MIB)
    make_disk(tmp_path, disk)
    before = (tmp_path / disk.file).read_bytes()
    with pytest.raises(FilesystemError):
        make_disk(tmp_path, disk)
    assert (tmp_path / disk.file).read_bytes() == before


def test_an_overlay_takes_no_name_that_is_there(tmp_path: Path) -> None:
    disk = Disk(name="disk", file="disk-0.qcow2", format="qcow2", size_bytes=MIB)
    assert next_overlay(disk).file == "disk-1.qcow2"
    make_disk(tmp_path, disk)
    # What a failed change left; another disk's files and what only looks alike don't count.
    for name in ("disk-4.qcow2", "disk1-9.qcow2", "disk-x.qcow2", "disk-12.qcow2.tmp", ".tmp-disk-20.qcow2"):
        (tmp_path / name).touch()
    over = next_overlay(disk, tmp_path)
    assert (over.file, over.backing) == ("disk-5.qcow2", ("disk-0.qcow2",))
    make_overlay(tmp_path, over)
    with pytest.raises(FilesystemError):
        make_overlay(tmp_path, over)
    above = next_overlay(over, tmp_path)
    assert (above.file, above.backing) == ("disk-6.qcow2", ("disk-0.qcow2", "disk-5.qcow2"))
    # A chain that was made shorter has fewer files than its numbers say.
    short = Disk(name="disk1", file="disk1-30.qcow2", format="qcow2", size_bytes=MIB)
    assert next_overlay(short, tmp_path).file == "disk1-31.qcow2"


def test_a_raw_snapshot_is_a_file_of_its_own(tmp_path: Path) -> None:
    source = tmp_path / "disk.raw"
    source.write_bytes(b"data" * KIB)
    made = snapshot_raw(source, tmp_path / "frozen", mode=0o444)
    assert made.reason.startswith("a raw disk can't be linked: ")
    assert (tmp_path / "frozen").read_bytes() == source.read_bytes()
    assert not (tmp_path / "frozen").samefile(source)
    assert (tmp_path / "frozen").stat().st_mode & 0o777 == 0o444


class TestTheUppermost:
    """Which file a disk is really in, when a capture was killed before it could write that down."""

    @pytest.fixture
    def disk(self, tmp_path: Path) -> Disk:
        disk = Disk(name="disk", file="disk-0.qcow2", format="qcow2", size_bytes=MIB)
        make_disk(tmp_path, disk)
        return disk

    def test_nothing_lies_over_it(self, tmp_path: Path, disk: Disk) -> None:
        assert uppermost(tmp_path, disk) == disk

    def test_one_and_two_do(self, tmp_path: Path, disk: Disk) -> None:
        once = next_overlay(disk, tmp_path)
        make_overlay(tmp_path, once)
        assert uppermost(tmp_path, disk) == once
        twice = next_overlay(once, tmp_path)
        make_overlay(tmp_path, twice)
        assert uppermost(tmp_path, disk) == uppermost(tmp_path, once) == uppermost(tmp_path, twice) == twice
        assert twice.backing == ("disk-0.qcow2", "disk-1.qcow2")

    def test_of_two_over_the_same_file_it_is_the_one_that_was_written(
        self, tmp_path: Path, disk: Disk
    ) -> None:
        used = next_overlay(disk, tmp_path)
        make_overlay(tmp_path, used)
        unused = next_overlay(disk, tmp_path)
        make_overlay(tmp_path, unused)
        assert used.file != unused.file
        os.utime(tmp_path / unused.file, ns=(1, 1))
        assert uppermost(tmp_path, disk) == used

    def test_what_lies_over_something_else_does_not_count(self, tmp_path: Path, disk: Disk) -> None:
        other = Disk(name="disk1", file="disk1-0.qcow2", format="qcow2", size_bytes=MIB)
        make_disk(tmp_path, other)
        make_overlay(tmp_path, next_overlay(other, tmp_path))
        # Its own name, but over the other disk; over the right file, but with another's name, or with none.
        make_qcow2(tmp_path / "disk-7.qcow2", MIB, backing=other.file)
        for name in ("disk1-9.qcow2", "disk-x.qcow2", ".tmp-disk-8.qcow2", "disk-8.qcow2.old"):
            make_qcow2(tmp_path / name, MIB, backing=disk.file)
        assert uppermost(tmp_path, disk) == disk

    def test_one_that_cannot_be_read(self, tmp_path: Path, disk: Disk) -> None:
        (tmp_path / "disk-1.qcow2").write_bytes(b"torn")
        with pytest.raises(DamagedError, match=r"disk-1\.qcow2"):
            uppermost(tmp_path, disk)

    def test_a_raw_disk_has_no_overlays(self, tmp_path: Path) -> None:
        raw = Disk(name="disk", file="disk.raw", format="raw", size_bytes=MIB)
        make_qcow2(tmp_path / "disk-1.qcow2", MIB, backing=raw.file)
        assert uppermost(tmp_path, raw) == raw
