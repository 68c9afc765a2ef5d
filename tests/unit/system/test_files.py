"""Holes, reflinks and durable names, on whatever filesystem the temporary directory is on."""

from __future__ import annotations

import errno
import os
import resource
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.errors import CannotReflinkError, FilesystemError
from ramet.system.copying import copy_extents, copy_sparse, data_extents, reflink
from ramet.system.files import allocated_bytes, new_file, open_regular, punch_hole, remove_tree
from ramet.system.publishing import fsync_directory, publish, temporary_beside, write_durably
from ramet.units import KIB, MIB

BLOCK = 4 * KIB
Extents = list[tuple[int, bytes]]
"""(offset, data) of what is written; the rest of the file is a hole."""

layouts = st.tuples(
    st.integers(0, 2 * MIB),
    st.lists(st.tuples(st.integers(0, 2 * MIB), st.binary(min_size=1, max_size=3 * BLOCK)), max_size=8),
)


@contextmanager
def largest_file(limit_bytes: int) -> Iterator[None]:
    """No file may grow beyond the limit: writes fail (EFBIG), for anyone, on any POSIX system."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def write_layout(path: Path, size: int, extents: Extents) -> None:
    with path.open("wb") as file:
        file.truncate(size)
        for offset, data in extents:
            file.seek(offset)
            file.write(data)
        file.flush()
        os.fsync(file.fileno())


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def synced(path: Path) -> Path:
    with open_regular(path) as descriptor:
        os.fsync(descriptor)
    return path


@settings(max_examples=60, deadline=None)
@given(layout=layouts, offload=st.booleans())
def test_a_sparse_copy_is_equal_and_no_larger(layout: tuple[int, Extents], offload: bool) -> None:
    with tempfile.TemporaryDirectory() as place:
        source, copy = Path(place, "source"), Path(place, "copy")
        write_layout(source, *layout)
        with open_regular(source) as origin, new_file(copy) as made:
            copied = copy_extents(origin, made, offload=offload)
        assert copy.read_bytes() == source.read_bytes()
        # A block of grace: ext4 counts its extent tree in, and lays a copy out in other pieces.
        assert allocated_bytes(synced(copy)) <= allocated_bytes(source) + BLOCK
        with open_regular(source) as origin, open_regular(copy) as made:
            extents = list(data_extents(origin))
            assert list(data_extents(made)) == extents
        assert copied == sum(end - start for start, end in extents)


def test_holes_are_not_copied(tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    write_layout(source, 1024 * MIB, [(512 * MIB, b"x" * BLOCK)])
    with open_regular(source) as descriptor:
        reported = sum(end - start for start, end in data_extents(descriptor))
    if reported > MIB:
        pytest.skip("this filesystem reports no holes")
    assert copy_sparse(source, copy) == reported
    assert copy.stat().st_size == 1024 * MIB
    assert allocated_bytes(copy) <= MIB
    with copy.open("rb") as file:
        file.seek(512 * MIB)
        assert file.read(BLOCK) == b"x" * BLOCK


def test_extents_of_an_all_hole_and_an_empty_file(tmp_path: Path) -> None:
    for size in (0, 64 * MIB):
        path = tmp_path / str(size)
        write_layout(path, size, [])
        with open_regular(path) as descriptor:
            assert list(data_extents(descriptor)) in ([], [(0, size)])


def test_a_failed_copy_leaves_nothing(tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    write_layout(source, 4 * MIB, [(0, b"x" * MIB)])
    with largest_file(2 * MIB), pytest.raises(FilesystemError, match="copy") as caught:
        copy_sparse(source, copy)
    assert caught.value.number == errno.EFBIG
    assert names_in(tmp_path) == ["source"]


def test_an_existing_destination_is_left_alone(tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(b"new")
    copy.write_bytes(b"old")
    for make in (copy_sparse, reflink):
        with pytest.raises(FilesystemError) as caught:
            make(source, copy)
        assert caught.value.number == errno.EEXIST
    assert copy.read_bytes() == b"old"


def test_reflink_shares_or_says_why_not(tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(b"genes" * BLOCK)
    reason = ""
    try:
        reflink(source, copy)
    except CannotReflinkError as error:
        reason = error.message
    assert bool(reason) != copy.exists()
    assert reason or copy.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("kind", ["fifo", "link", "socket", "directory"])
def test_only_regular_files_are_copied_and_nothing_waits(tmp_path: Path, kind: str) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    listener = socket.socket(socket.AF_UNIX)
    match kind:
        case "fifo":
            os.mkfifo(source)
        case "link":
            (tmp_path / "target").write_bytes(b"elsewhere")
            source.symlink_to("target")
        case "socket":
            listener.bind(str(source))
        case "directory":
            source.mkdir()
    try:
        with pytest.raises(FilesystemError):
            copy_sparse(source, copy)
    finally:
        listener.close()
    assert not copy.exists()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="fallocate(2) with PUNCH_HOLE is Linux's")
def test_a_punched_range_is_zeros_and_its_neighbours_are_not(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_layout(path, 16 * BLOCK, [(0, b"x" * 16 * BLOCK)])
    before = allocated_bytes(path)
    descriptor = os.open(path, os.O_RDWR)
    try:
        punched = punch_hole(descriptor, 4 * BLOCK, 8 * BLOCK)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if not punched:
        pytest.skip("this filesystem can't punch holes")
    assert path.read_bytes() == b"x" * 4 * BLOCK + bytes(8 * BLOCK) + b"x" * 4 * BLOCK
    assert allocated_bytes(path) < before


@pytest.mark.proves("I1")
def test_publish_gives_a_new_inode_the_name_and_leaves_the_old_one_whole(tmp_path: Path) -> None:
    final, kept = tmp_path / "mem", tmp_path / "kept"
    final.write_bytes(b"old")
    os.link(final, kept)
    temporary = temporary_beside(final)
    temporary.write_bytes(b"new")
    publish(temporary, final)
    assert (final.read_bytes(), kept.read_bytes()) == (b"new", b"old")
    assert names_in(tmp_path) == ["kept", "mem"]


def test_publish_a_directory_with_a_link_a_fifo_and_a_directory_in_it(tmp_path: Path) -> None:
    temporary, final = tmp_path / ".tmp-snapshot", tmp_path / "snapshot"
    (temporary / "inner").mkdir(parents=True)
    (temporary / "inner" / "part").write_bytes(b"part")
    (temporary / "nowhere").symlink_to("/nonexistent/target")
    os.mkfifo(temporary / "fifo")
    publish(temporary, final)
    assert (final / "inner" / "part").read_bytes() == b"part"
    assert not temporary.exists()


@pytest.mark.proves("I2")
def test_a_publication_that_fails_changes_nothing(tmp_path: Path) -> None:
    temporary, final = tmp_path / ".tmp-snapshot", tmp_path / "snapshot"
    temporary.mkdir()
    final.mkdir()
    (final / "part").write_bytes(b"published")
    with pytest.raises(FilesystemError, match="snapshot"):
        publish(temporary, final)
    assert temporary.is_dir()
    assert (final / "part").read_bytes() == b"published"


@pytest.mark.proves("I2")
def test_publishing_syncs_content_before_it_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform == "darwin":
        pytest.skip("macOS syncs with F_FULLFSYNC, which isn't seen here")
    seen: list[tuple[str, int]] = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(descriptor: int) -> None:
        seen.append(("sync", os.fstat(descriptor).st_ino))
        fsync(descriptor)

    def noted_replace(self: Path, target: Path) -> Path:
        seen.append(("rename", self.stat().st_ino))
        return replace(self, target)

    temporary, final = tmp_path / ".tmp-mem", tmp_path / "mem"
    temporary.write_bytes(b"part")
    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    publish(temporary, final)
    file, directory = final.stat().st_ino, tmp_path.stat().st_ino
    assert seen == [("sync", file), ("rename", file), ("sync", directory)]


def test_write_durably_replaces_or_leaves(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    write_durably(path, b"one")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    write_durably(path, b"two")
    with largest_file(MIB), pytest.raises(FilesystemError, match=r"manifest\.json"):
        write_durably(path, b"x" * 2 * MIB)
    assert path.read_bytes() == b"two"
    assert names_in(tmp_path) == ["manifest.json"]


def test_errors_name_the_path_and_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(FilesystemError, match="missing") as caught:
        fsync_directory(tmp_path / "missing")
    assert caught.value.number == errno.ENOENT
    assert caught.value.code == "filesystem"


class TestRemovingATree:
    """The home's worker makes files in the directories that others remove, and others remove them, too."""

    @pytest.fixture
    def tree(self, tmp_path: Path) -> Path:
        tree = tmp_path / "tree"
        (tree / "inner").mkdir(parents=True)
        for name in ("one", "other", "inner/third"):
            (tree / name).touch()
        return tree

    def test_what_is_not_there(self, tree: Path) -> None:
        remove_tree(tree)
        assert not tree.exists()
        remove_tree(tree)

    @pytest.mark.parametrize("times", [1, 4])
    def test_a_file_that_comes_meanwhile(
        self, tree: Path, monkeypatch: pytest.MonkeyPatch, times: int
    ) -> None:
        rmdir = os.rmdir
        come: list[str] = []

        def after_another_file(path: str, **given: int) -> None:
            if Path(path) == tree and len(come) < times:
                come.append(path)
                (tree / "late").touch()
            rmdir(path, **given)

        monkeypatch.setattr(os, "rmdir", after_another_file)
        remove_tree(tree)
        assert len(come) == times
        assert not tree.exists()

    def test_a_file_that_goes_meanwhile(self, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        unlink = os.unlink

        def twice(path: str, **given: int) -> None:
            unlink(path, **given)
            unlink(path, **given)

        monkeypatch.setattr(os, "unlink", twice)
        remove_tree(tree)
        assert not tree.exists()

    def test_what_cannot_go_is_named_and_the_rest_goes(
        self, tree: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        unlink = os.unlink

        def refused(path: str, **given: int) -> None:
            if path == "one":
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
            unlink(path, **given)

        monkeypatch.setattr(os, "unlink", refused)
        with pytest.raises(FilesystemError, match=f"can't remove {tree}/one: ") as caught:
            remove_tree(tree)
        assert caught.value.number == errno.EACCES
        assert [path.name for path in tree.iterdir()] == ["one"]
