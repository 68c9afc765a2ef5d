"""Sharing a mem-file, and the reason for every step down, on real filesystems."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ramet.errors import FilesystemError
from ramet.memory.integrity import check, digest, facts_of
from ramet.system.files import allocated_bytes
from ramet.system.share import ASKED_FOR, Shared, link_or_copy
from ramet.units import MIB


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "mem"
    with path.open("wb") as file:
        file.truncate(64 * MIB)
        file.seek(16 * MIB)
        file.write(b"genes" * MIB)
        file.flush()
        os.fsync(file.fileno())
    path.chmod(0o444)
    os.utime(path, ns=(1, 1_700_000_000_123_456_789))
    return path


@pytest.fixture
def elsewhere(source: Path) -> Iterator[Path]:
    """A directory on another filesystem than the source."""
    place = Path("/dev/shm")
    if not place.is_dir() or place.stat().st_dev == source.stat().st_dev:
        pytest.skip("there is no second filesystem at /dev/shm")
    with tempfile.TemporaryDirectory(dir=place) as directory:
        yield Path(directory)


def assert_same(source: Path, destination: Path, how: Shared) -> None:
    """Content, mode and time are the source's; without a link, the inode and the blocks are its own."""
    facts, copy = source.stat(), destination.stat()
    assert digest(destination) == digest(source)
    assert (copy.st_size, copy.st_mtime_ns) == (facts.st_size, facts.st_mtime_ns)
    assert stat.S_IMODE(copy.st_mode) == stat.S_IMODE(facts.st_mode)
    assert (copy.st_ino == facts.st_ino and copy.st_dev == facts.st_dev) == (how.mode == "shared")
    assert (how.bytes_copied > 0) == (how.mode == "copied")
    assert how.reason


@contextmanager
def immutable(path: Path) -> Iterator[None]:
    """The file with chattr's +i, which only root may set and only some filesystems have."""
    tool = shutil.which("chattr")
    if (
        os.geteuid() != 0
        or tool is None
        or subprocess.run([tool, "+i", path], capture_output=True).returncode
    ):
        pytest.skip("the immutable attribute needs root, chattr and a filesystem that has it")
    try:
        yield
    finally:
        subprocess.run([tool, "-i", path], check=True)


def test_a_link_is_the_same_inode_and_costs_nothing(source: Path, tmp_path: Path) -> None:
    facts = facts_of(source)
    how = link_or_copy(source, tmp_path / "fork")
    assert how.mode == "shared"
    assert source.stat().st_nlink == 2
    assert_same(source, tmp_path / "fork", how)
    check(tmp_path / "fork", facts)


@pytest.mark.proves("I3")
def test_a_fork_keeps_its_file_when_the_source_goes(source: Path, tmp_path: Path) -> None:
    before = digest(source)
    link_or_copy(source, tmp_path / "fork")
    source.unlink()
    assert digest(tmp_path / "fork") == before


@pytest.mark.proves("I4")
def test_another_filesystem_is_a_copy_that_says_so_and_keeps_the_holes(source: Path, elsewhere: Path) -> None:
    how = link_or_copy(source, elsewhere / "fork")
    assert how.mode == "copied"
    assert how.reason.startswith("no hard link: different filesystem; no reflink: ")
    assert how.bytes_copied < 8 * MIB
    assert allocated_bytes(elsewhere / "fork") < 8 * MIB
    assert_same(source, elsewhere / "fork", how)


@pytest.mark.proves("I4")
def test_a_driver_that_may_not_link_gives_its_own_reason(source: Path, tmp_path: Path) -> None:
    how = link_or_copy(source, tmp_path / "fork", allow_link=False, why_no_link="x maps shared")
    assert how.mode in ("reflinked", "copied")
    assert how.reason.startswith("no hard link: x maps shared")
    assert (how.mode == "copied") == ("no reflink: " in how.reason)
    assert_same(source, tmp_path / "fork", how)


def test_no_share_copies_because_it_was_asked_for(source: Path, tmp_path: Path) -> None:
    how = link_or_copy(source, tmp_path / "fork", share_memory=False)
    assert (how.mode, how.reason) == ("copied", ASKED_FOR)
    assert_same(source, tmp_path / "fork", how)


def test_with_reflinks_the_second_best_is_one(xfs: Path) -> None:
    source = xfs / "mem"
    source.write_bytes(os.urandom(4 * MIB))
    linked = link_or_copy(source, xfs / "linked")
    how = link_or_copy(source, xfs / "fork", allow_link=False)
    assert (linked.mode, how.mode) == ("shared", "reflinked")
    assert_same(source, xfs / "fork", how)
    asked = link_or_copy(source, xfs / "copy", share_memory=False)
    assert (asked.mode, asked.bytes_copied) == ("copied", 4 * MIB)
    with (xfs / "fork").open("r+b") as file:
        file.write(b"changed")
    assert digest(source) == digest(xfs / "copy") == digest(xfs / "linked") != digest(xfs / "fork")


def test_an_immutable_file_is_not_linked(source: Path, tmp_path: Path) -> None:
    with immutable(source):
        how = link_or_copy(source, tmp_path / "fork")
    assert how.mode in ("reflinked", "copied")
    assert "refuses hard links" in how.reason
    assert_same(source, tmp_path / "fork", how)


@pytest.mark.slow
@pytest.mark.proves("I4")
def test_at_the_link_limit_the_next_fork_is_a_copy(source: Path, tmp_path: Path) -> None:
    limit = os.pathconf(tmp_path, "PC_LINK_MAX")
    if not 1 < limit <= 65_000:
        pytest.skip(f"a file here may have {limit} links: too many to make")
    links = tmp_path / "links"
    links.mkdir()
    try:
        for number in range(limit - 1):
            os.link(source, links / str(number))
    except OSError as error:
        pytest.skip(f"the limit isn't the {limit} that the filesystem says: {error}")
    how = link_or_copy(source, tmp_path / "fork")
    assert how.mode in ("reflinked", "copied")
    assert how.reason.startswith("no hard link: link limit reached")
    assert_same(source, tmp_path / "fork", how)


def test_an_existing_destination_is_left_alone(source: Path, tmp_path: Path) -> None:
    fork = tmp_path / "fork"
    fork.write_bytes(b"own")
    for share in (True, False):
        with pytest.raises(FilesystemError) as caught:
            link_or_copy(source, fork, share_memory=share)
        assert caught.value.number == errno.EEXIST
    assert fork.read_bytes() == b"own"


@pytest.mark.parametrize("kind", ["missing", "link", "fifo", "directory"])
@pytest.mark.parametrize("share", [True, False])
def test_only_a_regular_file_is_shared(tmp_path: Path, kind: str, share: bool) -> None:
    source = tmp_path / "odd"
    match kind:
        case "link":
            (tmp_path / "secret").write_bytes(b"of another instance")
            source.symlink_to("secret")
        case "fifo":
            os.mkfifo(source)
        case "directory":
            source.mkdir()
    with pytest.raises(FilesystemError, match="odd"):
        link_or_copy(source, tmp_path / "fork", share_memory=share)
    assert not os.path.lexists(tmp_path / "fork")


def test_a_failed_copy_leaves_nothing(source: Path, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, hard))
    try:
        with pytest.raises(FilesystemError, match="fork") as caught:
            link_or_copy(source, tmp_path / "fork", share_memory=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.number == errno.EFBIG
    assert not (tmp_path / "fork").exists()


def test_a_full_filesystem_is_an_error_with_a_next_step(source: Path, full: Path) -> None:
    with pytest.raises(FilesystemError, match="free some space") as caught:
        link_or_copy(source, full / "fork")
    assert caught.value.number == errno.ENOSPC
    assert list(full.iterdir()) == []
