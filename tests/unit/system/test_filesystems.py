"""State isn't kept where other machines may see it: told by statfs(2), before anything is written."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

import ramet
from ramet.errors import UnavailableError
from ramet.store.records import Store
from ramet.system import filesystems
from ramet.system.doctor import home_findings
from tests.support.loop_filesystems import mounted
from tests.support.shell import run_command

LOCAL = {"ext4": 0xEF53, "XFS": 0x58465342, "btrfs": 0x9123683E, "tmpfs": 0x01021994, "overlay": 0x794C7630}


@pytest.fixture
def fuse() -> Iterator[Path]:
    """A directory on a real FUSE filesystem that can be written."""
    with tempfile.TemporaryDirectory(prefix="ramet-bindfs-") as behind:
        with mounted("-t", "fuse.bindfs", behind) as place:
            yield place
        assert list(Path(behind).iterdir()) == [], "something was written"


@pytest.mark.parametrize("number", sorted(filesystems.SEVERAL_MACHINES), ids=hex)
def test_a_filesystem_of_several_machines_is_known_by_its_number(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filesystems, "filesystem_type", lambda path: number)
    kind = filesystems.SEVERAL_MACHINES[number]
    with pytest.raises(UnavailableError, match=f"is on {kind}") as refused:
        filesystems.require_local([tmp_path / "not" / "there" / "yet"])
    assert "RAMET_HOME" in str(refused.value.hint)
    with pytest.raises(UnavailableError, match=kind):
        Store(tmp_path / "ramet.db")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        ("NFS", 0x6969),
        ("SMB", 0x517B),
        ("SMB2", 0xFE534D42),
        ("CIFS", 0xFF534D42),
        ("9p", 0x01021997),
        ("Lustre", 0x0BD00BD0),
        ("FUSE", 0x65735546),
        ("Ceph", 0x00C36400),
        ("GPFS", 0x47504653),
        ("AFS", 0x5346414F),
    ],
)
def test_the_numbers_are_those_of_statfs(kind: str, number: int) -> None:
    """statfs(2) and <linux/magic.h> have them."""
    assert filesystems.SEVERAL_MACHINES[number] == kind


@pytest.mark.parametrize("kind", LOCAL)
def test_a_filesystem_of_one_machine_is_good(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filesystems, "filesystem_type", lambda path: LOCAL[kind])
    filesystems.require_local([tmp_path])


def test_the_number_is_what_stat_says(tmp_path: Path) -> None:
    told = subprocess.run(["stat", "-f", "-c", "%t", tmp_path], capture_output=True, text=True, check=True)
    assert filesystems.filesystem_type(tmp_path) == int(told.stdout, 16)
    assert filesystems.filesystem_type(Path("/proc")) == 0x9FA0
    with pytest.raises(FileNotFoundError):
        filesystems.filesystem_type(tmp_path / "missing")


@pytest.mark.parametrize("below", [".", "not/there/yet"])
@pytest.mark.parametrize("command", [["ps", "-a"], ["run", "-d", "builtin"], ["rm", "-f", "x"], ["pool"]])
def test_a_home_on_fuse_is_refused_before_anything_is_written(
    fuse: Path, below: str, command: list[str]
) -> None:
    done = run_command([*command, "--json"], {**os.environ, "RAMET_HOME": str(fuse / below)})
    assert done.returncode == 5, done.stderr
    error = msgspec.json.decode(done.stdout)["error"]
    assert error["code"] == "unavailable"
    assert "is on FUSE" in error["message"]
    assert "RAMET_HOME" in error["hint"]
    assert "RAMET_CACHE" in error["hint"]
    assert list(fuse.iterdir()) == []


def test_doctor_says_so_too(fuse: Path, tmp_path: Path) -> None:
    (finding,) = home_findings(fuse, tmp_path)
    assert finding.ok is False
    assert "is on FUSE" in finding.found
    assert "RAMET_HOME" in (finding.advice or "")


@pytest.mark.anyio
async def test_a_part_of_a_home_that_is_a_mount_of_its_own_is_looked_at(tmp_path: Path) -> None:
    """Only some of it on a network, by a mount or a link."""
    async with ramet.Host(tmp_path):
        pass
    (tmp_path / "snapshots").rmdir()
    with tempfile.TemporaryDirectory() as behind, mounted("-t", "fuse.bindfs", behind) as place:
        (tmp_path / "snapshots").symlink_to(place)
        with pytest.raises(UnavailableError, match="snapshots is on FUSE"):
            async with ramet.Host(tmp_path):
                pass


@pytest.mark.anyio
async def test_the_cache_may_be_on_fuse(fuse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ramet.api.temporary_home import temporary_home

    monkeypatch.setenv("RAMET_CACHE", str(fuse))
    async with ramet.Host(tmp_path):
        pass
    async with temporary_home() as home, ramet.Host(home):
        assert not home.is_relative_to(fuse)
