"""The directory clone, on random trees and with somebody changing the tree meanwhile."""

from __future__ import annotations

import errno
import os
import resource
import socket
import stat
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.disk.clone import clone_directory
from ramet.errors import FilesystemError, UsageError
from ramet.system.files import allocated_bytes, open_regular
from ramet.units import KIB, MIB

BLOCK = 4 * KIB


class File(NamedTuple):
    size: int
    extents: list[tuple[int, bytes]]
    mode: int
    mtime_ns: int


class Link(NamedTuple):
    target: str


class Fifo(NamedTuple):
    pass


class Directory(NamedTuple):
    entries: dict[str, Any]
    mode: int
    mtime_ns: int


KEPT_NAMES = ["disk.raw", "mem", "vmstate", "log", "sock", "a.lock.json", "grün", "console.log.2", ".hidden"]
LEFT_OUT_NAMES = [
    "vsock.sock",
    "console.log",
    "console.log.1",
    "port.lock",
    "x.tmp",
    "vmm.pid",
    ".tmp-mem-1f",
]
names = st.sampled_from(KEPT_NAMES + LEFT_OUT_NAMES)
times = st.integers(0, 2**32 * 10**9)
offsets = st.integers(0, 64).map(lambda block: block * BLOCK) | st.integers(0, 64 * BLOCK)
files = st.builds(
    File,
    st.integers(0, 80 * BLOCK),
    st.lists(st.tuples(offsets, st.binary(min_size=1, max_size=2 * BLOCK)), max_size=4),
    st.sampled_from([0o400, 0o444, 0o600, 0o644, 0o755]),
    times,
)
links = st.builds(
    Link, st.sampled_from(["disk.raw", "/nonexistent/x", "../outside/secret", "../outside", "."])
)
directory_modes = st.sampled_from([0o500, 0o555, 0o700, 0o755])
leaves = files | links | st.just(Fifo())
nodes = st.recursive(
    leaves,
    lambda inner: st.builds(Directory, st.dictionaries(names, inner, max_size=4), directory_modes, times),
    max_leaves=12,
)
trees = st.builds(Directory, st.dictionaries(names, nodes, max_size=6), directory_modes, times)


def grow(path: Path, node: File | Link | Fifo | Directory) -> None:
    """Make the node at that path."""
    match node:
        case File():
            with path.open("wb") as file:
                file.truncate(node.size)
                for offset, data in node.extents:
                    file.seek(offset)
                    file.write(data)
                file.flush()
                os.fsync(file.fileno())
            path.chmod(node.mode)
        case Link():
            path.symlink_to(node.target)
            return
        case Fifo():
            os.mkfifo(path)
            return
        case Directory():
            path.mkdir()
            for name, below in node.entries.items():
                grow(path / name, below)
            path.chmod(node.mode)
    os.utime(path, ns=(0, node.mtime_ns))


def is_left_out(name: str, node: object) -> bool:
    return name in LEFT_OUT_NAMES or isinstance(node, Fifo)


def expected_paths(node: Directory, skipped: Collection[str], prefix: str = "") -> Iterator[str]:
    for name, below in node.entries.items():
        path = prefix + name
        if is_left_out(name, below) or path in skipped:
            continue
        yield path
        if isinstance(below, Directory):
            yield from expected_paths(below, skipped, f"{path}/")


def paths_below(root: Path) -> list[str]:
    found = []
    for place, directories, others in os.walk(root):
        found += [str(Path(place, name).relative_to(root)) for name in directories + others]
    return found


def state_of(root: Path) -> list[tuple[str, int, int, int, bytes | str]]:
    """All that a look at a tree can tell, but access times."""
    rows = []
    for path in [root, *(root / below for below in sorted(paths_below(root)))]:
        facts = path.lstat()
        content: bytes | str = ""
        if stat.S_ISLNK(facts.st_mode):
            content = str(path.readlink())
        elif stat.S_ISREG(facts.st_mode):
            content = path.read_bytes()
        rows.append((str(path), facts.st_mode, facts.st_mtime_ns, facts.st_nlink, content))
    return rows


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def written_blocks(path: Path) -> int:
    with open_regular(path) as descriptor:
        os.fsync(descriptor)
    return allocated_bytes(path)


@settings(max_examples=80, deadline=None)
@given(tree=trees, data=st.data())
def test_a_clone_is_the_tree_less_what_is_left_out(tree: Directory, data: st.DataObject) -> None:
    candidates = sorted(expected_paths(tree, ()))
    skipped = data.draw(st.sets(st.sampled_from(candidates))) if candidates else set()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        source, clone, outside = root / "source", root / "clone", root / "outside"
        outside.mkdir()
        (outside / "secret").write_bytes(b"of another instance")
        grow(source, tree)
        before = state_of(outside), state_of(source)
        results = clone_directory(source, clone, skip_rel_paths=skipped)

        assert (state_of(outside), state_of(source)) == before
        assert sorted(paths_below(clone)) == sorted(expected_paths(tree, skipped))
        regular = set()
        for path in ["", *paths_below(clone)]:
            old, new = source / path, clone / path
            facts, copy = old.lstat(), new.lstat()
            assert copy.st_mode == facts.st_mode
            assert copy.st_mtime_ns == facts.st_mtime_ns
            if stat.S_ISLNK(copy.st_mode):
                assert new.readlink() == old.readlink()
            elif stat.S_ISREG(copy.st_mode):
                regular.add(path)
                assert copy.st_ino != facts.st_ino
                assert new.read_bytes() == old.read_bytes()
                # A block of grace: ext4 counts its extent tree in, and lays a copy out in other pieces.
                assert written_blocks(new) <= written_blocks(old) + BLOCK
        assert {result.path for result in results} == regular


def test_skipped_paths_are_not_even_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    (source / "snapshots" / "deep").mkdir(parents=True)
    for path in ("mem", "disk.raw", "snapshots/deep/mem", "snapshots/index"):
        (source / path).write_bytes(b"x")
    touched: list[str] = []
    opened, looked_at = os.open, os.stat

    def noted_open(path: Any, *arguments: Any, **options: Any) -> int:
        touched.append(str(path))
        return opened(path, *arguments, **options)

    def noted_stat(path: Any, **options: Any) -> os.stat_result:
        touched.append(str(path))
        return looked_at(path, **options)

    monkeypatch.setattr(os, "open", noted_open)
    monkeypatch.setattr(os, "stat", noted_stat)
    results = clone_directory(source, tmp_path / "clone", skip_rel_paths={"./mem", Path("snapshots/deep")})
    assert [result.path for result in results] == ["disk.raw", "snapshots/index"]
    assert "disk.raw" in touched
    assert not {"mem", "deep"} & set(touched)


def test_sockets_and_fifos_stay_behind_whatever_their_names(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    os.mkfifo(source / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(source / "qmp"))
        assert clone_directory(source, tmp_path / "clone") == []
    assert names_in(tmp_path / "clone") == []


def test_hard_links_become_files_of_their_own(tmp_path: Path) -> None:
    source, clone = tmp_path / "source", tmp_path / "clone"
    source.mkdir()
    (source / "one").write_bytes(b"x")
    os.link(source / "one", source / "two")
    clone_directory(source, clone)
    (clone / "one").write_bytes(b"changed")
    assert ((clone / "two").read_bytes(), (source / "one").read_bytes()) == (b"x", b"x")


@pytest.mark.parametrize("swapped", ["inner", "inner/file"])
def test_a_link_that_takes_an_entrys_place_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swapped: str
) -> None:
    source, clone, outside = tmp_path / "source", tmp_path / "clone", tmp_path / "outside"
    (source / "inner").mkdir(parents=True)
    (source / "inner" / "file").write_bytes(b"own")
    outside.mkdir()
    (outside / "file").write_bytes(b"of another instance")
    looked_at = os.stat

    def stat_then_swap(path: Any, **options: Any) -> os.stat_result:
        facts = looked_at(path, **options)
        victim = source / swapped
        if path == victim.name and not victim.is_symlink():
            victim.rename(tmp_path / "moved")
            victim.symlink_to(outside if swapped == "inner" else outside / "file")
        return facts

    monkeypatch.setattr(os, "stat", stat_then_swap)
    with pytest.raises(FilesystemError, match="inner"):
        clone_directory(source, clone)
    assert (source / swapped).is_symlink()
    assert not clone.exists()


def test_a_linked_source_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(FilesystemError, match="link"):
        clone_directory(tmp_path / "link", tmp_path / "clone")
    assert not (tmp_path / "clone").exists()


def test_a_failure_removes_the_clone_and_names_the_file(tmp_path: Path) -> None:
    source, clone = tmp_path / "source", tmp_path / "clone"
    (source / "a" / "sealed").mkdir(parents=True)
    (source / "a" / "sealed" / "small").write_bytes(b"x")
    (source / "a" / "sealed").chmod(0o500)
    (source / "b").mkdir()
    (source / "b" / "large").write_bytes(b"x" * 2 * MIB)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, hard))
    try:
        with pytest.raises(FilesystemError, match="b/large") as caught:
            clone_directory(source, clone)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.number == errno.EFBIG
    assert names_in(tmp_path) == ["source"]


def test_a_full_filesystem_is_said_and_left_empty(tmp_path: Path, full: Path) -> None:
    (tmp_path / "disk.raw").write_bytes(b"x" * 2 * MIB)
    with pytest.raises(FilesystemError, match=r"disk\.raw.*free some space") as caught:
        clone_directory(tmp_path, full / "clone")
    assert caught.value.number == errno.ENOSPC
    assert names_in(full) == []


def test_an_existing_destination_is_left_alone(tmp_path: Path) -> None:
    source, clone = tmp_path / "source", tmp_path / "clone"
    source.mkdir()
    clone.mkdir()
    (clone / "own").write_bytes(b"x")
    with pytest.raises(FilesystemError) as caught:
        clone_directory(source, clone)
    assert caught.value.number == errno.EEXIST
    assert names_in(clone) == ["own"]


def test_a_clone_inside_its_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        clone_directory(tmp_path, tmp_path / "inner")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("path", ["", ".", "/etc/passwd", "../mem", "a/../../mem"])
def test_a_path_to_skip_that_leads_out_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(UsageError):
        clone_directory(tmp_path, tmp_path.with_name("clone"), skip_rel_paths={path})


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file to another user needs root")
def test_a_set_user_id_bit_of_another_owner_is_dropped(tmp_path: Path) -> None:
    source, clone = tmp_path / "source", tmp_path / "clone"
    source.mkdir()
    for name, owner in (("own", 0), ("other", 65534)):
        (source / name).write_bytes(b"x")
        os.chown(source / name, owner, owner)
        (source / name).chmod(0o4755)
    clone_directory(source, clone)
    assert stat.S_IMODE((clone / "own").stat().st_mode) == 0o4755
    assert stat.S_IMODE((clone / "other").stat().st_mode) == 0o755


def test_on_a_filesystem_with_reflinks_nothing_is_copied(xfs: Path) -> None:
    source, clone, copy = xfs / "source", xfs / "clone", xfs / "copy"
    source.mkdir()
    (source / "disk.raw").write_bytes(os.urandom(16 * MIB))
    assert [made.mode for made in clone_directory(source, copy, allow_reflink=False)] == ["copied"]
    os.sync()
    before = os.statvfs(xfs)
    (made,) = clone_directory(source, clone)
    os.sync()
    after = os.statvfs(xfs)
    assert (made.mode, made.bytes_copied) == ("reflinked", 0)
    assert (before.f_bfree - after.f_bfree) * before.f_bsize < MIB
    with (clone / "disk.raw").open("r+b") as file:
        file.write(b"changed")
    assert (source / "disk.raw").read_bytes() == (copy / "disk.raw").read_bytes()


def test_a_copy_that_may_not_share_has_blocks_of_its_own(xfs: Path) -> None:
    source, clone = xfs / "own-source", xfs / "own-copy"
    source.mkdir()
    (source / "disk.raw").write_bytes(os.urandom(16 * MIB))
    os.sync()
    before = os.statvfs(xfs)
    clone_directory(source, clone, allow_reflink=False)
    os.sync()
    after = os.statvfs(xfs)
    assert (before.f_bfree - after.f_bfree) * before.f_bsize >= 16 * MIB
