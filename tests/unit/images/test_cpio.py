"""The initramfs writer: another reader finds what was put in, and it is always the same bytes."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ramet.images.cpio import FileTree


def small_tree(*, reverse: bool = False) -> FileTree:
    tree = FileTree()
    steps: list[Callable[[], None]] = [
        lambda: tree.file("etc/deep/er/motd", "grüße\n"),
        lambda: tree.file("init", b"\x7fELF", 0o755),
        lambda: tree.symlink("bin/sh", "/bin/busybox"),
        lambda: tree.character_device("dev/null", 1, 3, 0o666),
        lambda: tree.directory("tmp", 0o1777),
        lambda: tree.file("etc-not-a-parent", ""),
    ]
    for step in reversed(steps) if reverse else steps:
        step()
    return tree


def test_same_tree_same_bytes_whatever_the_order() -> None:
    assert small_tree().pack() == small_tree(reverse=True).pack()


def test_another_reader_finds_what_was_put_in(tmp_path: Path) -> None:
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("no busybox here to read the archive with")
    packed = small_tree().pack()
    listing = subprocess.run(
        [busybox, "cpio", "-tv"], input=packed, capture_output=True, check=True, timeout=20
    ).stdout.decode()
    lines = {line.split()[-1 if "->" not in line else -3]: line for line in listing.splitlines()}
    assert list(lines) == [
        "bin", "bin/sh", "dev", "dev/null", "etc", "etc/deep", "etc/deep/er", "etc/deep/er/motd",
        "etc-not-a-parent", "init", "tmp",
    ]  # fmt: skip
    assert lines["bin/sh"].startswith("lrwxrwxrwx")
    assert lines["bin/sh"].endswith("-> /bin/busybox")
    assert lines["dev/null"].startswith("crw-rw-rw-")
    assert lines["tmp"].startswith("drwxrwxrwt")
    assert lines["init"].startswith("-rwxr-xr-x")
    subprocess.run(
        [busybox, "cpio", "-id", "etc/deep/er/motd"], input=packed, check=True, cwd=tmp_path, timeout=20,
        capture_output=True,
    )  # fmt: skip
    assert (tmp_path / "etc/deep/er/motd").read_text() == "grüße\n"


def test_nothing_of_this_host_is_in_the_header() -> None:
    header = small_tree().pack()[:110]
    fields = [int(header[6 + 8 * n : 14 + 8 * n], 16) for n in range(13)]
    assert header[:6] == b"070701"
    assert fields[2:4] == [0, 0], "owner and group"
    assert fields[5] == 0, "time"
    assert fields[7:9] == [0, 0], "filesystem"


@pytest.mark.parametrize(
    "path", ["", "/etc/passwd", "../out", "a/../b", "a//b", "a/./b", "x\0y", "TRAILER!!!", "a" * 5000]
)
def test_paths_that_lead_elsewhere_are_refused(path: str) -> None:
    tree = FileTree()
    with pytest.raises(ValueError, match="path"):
        tree.file(path, b"")
    assert tree.pack() == FileTree().pack()


def test_conflicts_change_nothing() -> None:
    tree = small_tree()
    before = tree.pack()
    for path in ("init", "init/below", "bin/sh", "bin/sh/below", "tmp"):
        with pytest.raises(ValueError, match=r"already|no directory"):
            tree.file(path, b"other")
    assert tree.pack() == before


def test_a_directory_can_be_given_its_mode_later() -> None:
    tree = FileTree()
    tree.file("root/x", b"")
    tree.directory("root", 0o700)
    assert b"000041C0" in tree.pack()
