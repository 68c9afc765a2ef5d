"""How a fork comes by its memory where a hard link can't be had: on real filesystems, through the command, in
the receipts' own words. `docs/reference/fallbacks.md` has the table that the run prints.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ramet.paths import INITRAMFS_FILE, KERNEL_FILE
from tests.platform.fallbacks.conftest import SmallHome, immutable
from tests.side_by_side import tell
from tests.support.loop_filesystems import SYSTEM_PATH

pytestmark = pytest.mark.vm

DOCUMENT = Path(__file__).parents[3] / "docs" / "reference" / "fallbacks.md"
LINK = "hard link: one inode, one copy in the page cache"
NO_LINK = "the filesystem or kernel refuses hard links (protected_hardlinks, immutable attribute)"
EXT4_LINKS = 65000


@pytest.fixture(scope="module")
def rows() -> Iterator[list[str]]:
    """The table so far; printed at the end."""
    lines: list[str] = []
    yield lines
    head = "| filesystem of the home | in the way | asked for | mode | reason in the receipt |"
    tell("\n".join(["", head, "| --- | --- | --- | --- | --- |", *lines]))


def note(rows: list[str], filesystem: str, obstacle: str, asked: str, memory: dict[str, Any]) -> None:
    """Enter a row in the table, which has to be in the documentation, too."""
    row = f"| {filesystem} | {obstacle} | {asked or 'nothing'} | `{memory['mode']}` | {memory['reason']} |"
    rows.append(row)
    assert row in DOCUMENT.read_text(), f"docs/reference/fallbacks.md lacks: {row}"


def refused(home: SmallHome, reason: str) -> None:
    """`--require-shared` refuses with exit code 5 and that reason, and leaves nothing."""
    before = (sorted((home.root / "instances").iterdir()), home.mem_file.stat().st_nlink)
    done = home.shell("fork", "--require-shared", "--json", "warm", code=5)
    assert sorted((home.root / "instances").iterdir()) == before[0]
    assert home.mem_file.stat().st_nlink == before[1]
    text = done.stderr.decode()
    assert f"not shared: {reason}" in text
    assert "hint: leave --require-shared out" in text
    failure = msgspec.json.decode(done.stdout)["forks"][0]
    assert failure["error"]["code"] == "not_shared"


@pytest.mark.proves("I4")
@pytest.mark.parametrize("filesystem", ["ext4", "XFS with reflinks"])
def test_a_hard_link_unless_a_copy_is_asked_for(
    filesystem: str, rows: list[str], request: pytest.FixtureRequest
) -> None:
    home: SmallHome = request.getfixturevalue("on_ext4" if filesystem == "ext4" else "on_xfs")
    memory = home.memory("--require-shared")
    assert (memory["mode"], memory["reason"]) == ("shared", LINK)
    assert memory["inode"] == home.mem_file.stat().st_ino
    assert memory["links"] > 2
    note(rows, filesystem, "nothing", "", memory)
    memory = home.memory("--no-share")
    assert (memory["mode"], memory["reason"]) == ("copied", "asked for")
    assert memory["inode"] != home.mem_file.stat().st_ino
    note(rows, filesystem, "nothing", "`--no-share`", memory)


@pytest.mark.parametrize("filesystem", ["ext4", "XFS with reflinks"])
def test_an_immutable_mem_file(filesystem: str, rows: list[str], request: pytest.FixtureRequest) -> None:
    home: SmallHome = request.getfixturevalue("on_ext4" if filesystem == "ext4" else "on_xfs")
    mem_file = home.mem_file
    with immutable(mem_file):
        memory = home.memory()
        refused(home, f"no hard link: {NO_LINK}")
    if filesystem == "ext4":
        expected = ("copied", f"no hard link: {NO_LINK}; no reflink: the filesystem has no reflinks")
    else:
        expected = ("reflinked", f"no hard link: {NO_LINK}")
    assert (memory["mode"], memory["reason"]) == expected
    assert (memory["inode"], memory["links"]) != (mem_file.stat().st_ino, mem_file.stat().st_nlink)
    note(rows, filesystem, "`chattr +i mem`", "", memory)


@pytest.mark.proves("I4")
def test_the_link_limit_of_ext4(on_ext4: SmallHome, rows: list[str]) -> None:
    """The kernel's own refusal at 65,000 links. Making that many takes ten seconds; debugfs writes the
    number into the inode in a moment.
    """
    mem_file = on_ext4.mem_file
    with link_count(on_ext4, mem_file, EXT4_LINKS - 1):
        last = on_ext4.root / "last"
        last.hardlink_to(mem_file)
        with pytest.raises(OSError, match="Too many links"):
            (on_ext4.root / "one-more").hardlink_to(mem_file)
        memory = on_ext4.memory()
        refused(on_ext4, "no hard link: link limit reached")
        last.unlink()
    assert memory["mode"] == "copied"
    assert memory["reason"] == "no hard link: link limit reached; no reflink: the filesystem has no reflinks"
    assert memory["links"] == 1
    note(rows, "ext4", "65,000 links to the mem-file", "", memory)
    assert on_ext4.memory()["mode"] == "shared", "with the limit gone, forks share again"


@contextmanager
def link_count(home: SmallHome, path: Path, count: int) -> Iterator[None]:
    """`path` has so many links, as far as the filesystem knows; the true number again afterwards.

    Nothing may run meanwhile: the filesystem is unmounted for it.
    """
    home.shell("rm", "-f", "witness")
    true_count = path.stat().st_nlink
    set_link_count(home, path, count)
    try:
        yield
    finally:
        set_link_count(home, path, true_count)
        home.shell("fork", "--name", "witness", "warm")


def set_link_count(home: SmallHome, path: Path, count: int) -> None:
    """Write the number into the inode while the filesystem isn't mounted."""
    debugfs = shutil.which("debugfs", path=SYSTEM_PATH)
    if debugfs is None:
        pytest.skip("debugfs isn't installed (package e2fsprogs)")
    place, inode = home.root.parent, path.stat().st_ino
    command = f"set_inode_field <{inode}> links_count {count}"
    subprocess.run(["umount", place], check=True, timeout=60)
    try:
        subprocess.run(
            [debugfs, "-w", "-R", command, str(home.image)], check=True, capture_output=True, timeout=60
        )
    finally:
        subprocess.run(["mount", "-o", "loop", str(home.image), place], check=True, timeout=60)
    assert path.stat().st_nlink == count


@pytest.mark.parametrize("filesystem", ["on_ext4", "on_xfs"])
def test_the_image_cache_on_another_filesystem(filesystem: str, request: pytest.FixtureRequest) -> None:
    """Kernel and initramfs are copied once, into the instance that is booted; its forks link to those."""
    home: SmallHome = request.getfixturevalue(filesystem)
    for part in KERNEL_FILE, INITRAMFS_FILE:
        facts = (home.mem_file.parent / part).stat()
        assert facts.st_dev == home.root.stat().st_dev
        assert facts.st_nlink >= 1
