"""A disk that is full at each stage of an instance's life: what is said, and that nothing else is harmed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ramet.units import KIB, MIB
from tests.conftest import living_in
from tests.platform.fallbacks.conftest import SmallHome

pytestmark = pytest.mark.vm

# What a command that fails may keep of the disk: blocks of directories that have grown, SQLite's log.
_SLACK_BYTES = 512 * KIB


class Unharmed:
    """Inside, a command fails; afterwards everything is as it was and the space is free again."""

    def __init__(self, home: SmallHome) -> None:
        self._home = home

    def __enter__(self) -> None:
        self._before = self._state()
        self._free_bytes = self._home.free_bytes()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            assert self._state() == self._before
            assert self._home.free_bytes() >= self._free_bytes - _SLACK_BYTES
            self._home.witness()

    def _state(self) -> tuple[list[Path], list[int], int]:
        directories = sorted((self._home.root / "instances").iterdir())
        return directories, sorted(living_in(self._home.root)), self._home.mem_file.stat().st_nlink


def said(home: SmallHome, *words: str, code: int = 1) -> str:
    """What a failing command says, on its two lines."""
    text = home.shell(*words, code=code).stderr.decode()
    assert len(text.splitlines()) == 2, text
    return text


@pytest.mark.parametrize("room_bytes", [0, pytest.param(64 * KIB, marks=pytest.mark.deep), 16 * MIB])
def test_run(on_ext4: SmallHome, room_bytes: int) -> None:
    """Neither the directory, nor the kernel, which comes from another filesystem, fits."""
    with on_ext4.left(room_bytes), Unharmed(on_ext4):
        text = said(on_ext4, "run", "--name", "late", "builtin")
    assert "No space left on device" in text or "disk is full" in text
    assert "free" in text


@pytest.mark.deep
def test_template(on_ext4: SmallHome) -> None:
    """The mem-file doesn't fit: the instance runs on, its memory as it was."""
    on_ext4.shell("fork", "--name", "source", "warm")
    try:
        on_ext4.shell("exec", "source", "sh", "-c", "head -c 20000000 /dev/urandom > /tmp/more")
        before = on_ext4.shell("exec", "source", "md5sum", "/tmp/data", "/tmp/more").stdout
        with on_ext4.left(8 * MIB), Unharmed(on_ext4):
            text = said(on_ext4, "template", "source")
            assert on_ext4.shell("exec", "source", "md5sum", "/tmp/data", "/tmp/more").stdout == before
            (shown,) = (
                instance for instance in on_ext4.shell.json("ps", "--json") if instance["name"] == "source"
            )
            assert shown["state"] == "running"
        assert "No space left on device" in text
        assert "hint: free some space" in text
        on_ext4.shell("template", "source")
        on_ext4.shell("fork", "--require-shared", "--name", "child", "source")
        assert on_ext4.shell("exec", "child", "md5sum", "/tmp/data", "/tmp/more").stdout == before
    finally:
        on_ext4.shell("rm", "-f", "child", "source")


def test_fork_by_copy(on_ext4: SmallHome) -> None:
    """A copy of the mem-file doesn't fit, where a link does."""
    with on_ext4.left(8 * MIB), Unharmed(on_ext4):
        text = said(on_ext4, "fork", "--no-share", "--name", "late", "warm")
        assert on_ext4.memory()["mode"] == "shared"
    assert "No space left on device" in text
    assert "hint: free some space" in text


@pytest.mark.proves("I7")
def test_fork_of_several_by_copy(on_ext4: SmallHome) -> None:
    """Some fit, some don't: those that do live (I7)."""
    size = on_ext4.mem_file.stat().st_blocks * 512
    with on_ext4.left(size + 24 * MIB):
        report = on_ext4.shell.json(
            "fork", "-n", "3", "--no-share", "--json", "--name", "many", "warm", code=6
        )
        living = [receipt["name"] for receipt in report["forks"] if receipt["ok"]]
        failed = [receipt for receipt in report["forks"] if not receipt["ok"]]
        assert living
        assert failed
        assert {fork["error"]["code"] for fork in failed} == {"filesystem"}
        for name in living:
            assert on_ext4.shell("exec", name, "md5sum", "/tmp/data").stdout == on_ext4.data
        on_ext4.shell("rm", "-f", *living)
    on_ext4.witness()


def test_fork_without_any_room(on_ext4: SmallHome) -> None:
    """Not even a directory can be made."""
    with on_ext4.left(0), Unharmed(on_ext4):
        text = said(on_ext4, "fork", "--name", "late", "warm")
    assert "No space left on device" in text or "disk is full" in text
    assert "free" in text


def test_what_is_on_a_full_disk_can_be_removed(on_ext4: SmallHome) -> None:
    """SQLite needs room to open a database and to delete from it: the home keeps some in reserve."""
    on_ext4.shell("fork", "-n", "3", "--name", "doomed", "warm")
    reserve = on_ext4.root / "ramet.db-reserve"
    assert reserve.stat().st_blocks * 512 >= 256 * KIB
    with on_ext4.left(0):
        assert on_ext4.free_bytes() == 0, "as much as can be taken"
        assert not os.path.lexists(on_ext4.root / "ramet.db-wal")
        on_ext4.shell("ps")
        on_ext4.shell("rm", "-f", "doomed-1")
        on_ext4.shell("stop", "doomed-2")
        on_ext4.shell("rm", "doomed-2")
        on_ext4.shell("rm", "-f", "doomed-3")
        on_ext4.witness()
    on_ext4.shell("ps")
    assert reserve.stat().st_blocks * 512 >= 256 * KIB
