"""Homes whose files look otherwise than when they were published, and hold the same: nothing is damaged.

XFS gives up reserved blocks when it is mounted anew, an overlay's lower layer has other inodes, `cp` and
`tar` make other times and holes.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ramet.engine.manifest import read_manifest
from ramet.memory.integrity import differences, facts_of
from ramet.paths import CONFIRMED_FILE
from ramet.units import MIB
from tests.conftest import assert_nothing_left
from tests.side_by_side import tell
from tests.support.loop_filesystems import SYSTEM_PATH, mounted
from tests.support.shell import Shell

pytestmark = pytest.mark.vm

_COMPACTED_WITHIN_S = 60


@contextmanager
def formatted(kind: str, *options: str) -> Iterator[Path]:
    """A file with a filesystem in it, to be mounted."""
    mkfs = shutil.which(f"mkfs.{kind}", path=SYSTEM_PATH)
    if mkfs is None:
        pytest.skip(f"mkfs.{kind} isn't installed")
    with tempfile.NamedTemporaryFile(prefix=f"ramet-{kind}-") as image:
        image.truncate(512 * MIB)
        subprocess.run([mkfs, *options, image.name], check=True, capture_output=True, timeout=60)
        yield Path(image.name)


@contextmanager
def shell_in(home: Path) -> Iterator[Shell]:
    """A shell on a home; its instances are removed at the end."""
    shell = Shell(home)
    try:
        yield shell
    finally:
        shell.close()
        if names := [instance["name"] for instance in shell.json("ps", "-a", "--json")]:
            shell("rm", "-f", *names)


def sum_in(shell: Shell, name: str) -> bytes:
    return shell("exec", name, "md5sum", "/tmp/more").stdout


def compacted_snapshot(shell: Shell) -> tuple[Path, bytes]:
    """The directory of the snapshot `box/big`, compacted after its source had changed 20 MiB, and what its
    guests have. The source is stopped.
    """
    done = shell.start("run", "-d", "--name", "box", "builtin")
    said = done.communicate(timeout=120)[1]
    if done.returncode == 5:
        pytest.skip(said.decode())
    shell("standby", "box")
    shell("restore", "box")
    shell("exec", "box", "sh", "-c", "head -c 20000000 /dev/urandom > /tmp/more")
    expected = sum_in(shell, "box")
    directory = Path(shell.json("snapshot", "create", "--name", "big", "box", "--json")["directory"])
    deadline = time.monotonic() + _COMPACTED_WITHIN_S
    while read_manifest(directory).memory.delta is not None:
        assert time.monotonic() < deadline, "the worker hasn't compacted it"
        time.sleep(0.1)
    shell("stop", "box")
    return directory, expected


def differing(directory: Path) -> list[str]:
    """The facts in which the parts of a capture are other than its manifest says."""
    parts = read_manifest(directory).parts
    return [
        what.split()[0]
        for name, part in parts.items()
        for what in differences(facts_of(directory / name), part.facts)
    ]


def forks_as_before(shell: Shell, directory: Path, expected: bytes) -> None:
    for name in ("one", "two"):
        shell("fork", "--require-shared", "--name", name, "box/big")
        assert sum_in(shell, name) == expected
    shell("snapshot", "verify", "box/big")
    shell("rm", "-f", "one", "two")
    # A lost byte is found all the same, whatever was confirmed before.
    vmstate = directory / "vmstate"
    whole = vmstate.read_bytes()
    vmstate.write_bytes(whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:])
    assert b"damaged" in shell("fork", "--json", "box/big", code=1).stdout
    vmstate.write_bytes(whole)
    shell("fork", "--name", "one", "box/big")


@pytest.mark.deep
def test_on_xfs_mounted_anew_after_a_compaction() -> None:
    with formatted("xfs", "-q", "-m", "reflink=1") as image:
        with mounted("-t", "xfs", "-o", "loop", str(image)) as place:
            home = place / "home"
            with shell_in(home) as shell:
                _, expected = compacted_snapshot(shell)
        # As if the home had always been there: its path is another one, too.
        with mounted("-t", "xfs", "-o", "loop", str(image)) as place:
            home = place / "home"
            with shell_in(home) as shell:
                (row,) = shell.json("snapshot", "ls", "--json")
                tell(
                    f"XFS mounted anew: {differing(Path(row['directory']))} of parts differ, none is damaged"
                )
                forks_as_before(shell, Path(row["directory"]), expected)
            shell("snapshot", "rm", "box/big")
            assert_nothing_left(home)


def by_cp(old: Path, new: Path) -> None:
    subprocess.run(["cp", "-a", "--sparse=always", old, new], check=True, timeout=120)


def by_tar(old: Path, new: Path) -> None:
    """Whole seconds, no holes."""
    new.mkdir()
    packed = subprocess.Popen(["tar", "-C", old, "--format=gnu", "-c", "."], stdout=subprocess.PIPE)
    subprocess.run(["tar", "-C", new, "-xp"], stdin=packed.stdout, check=True, timeout=120)
    assert packed.stdout is not None
    packed.stdout.close()
    assert packed.wait() == 0


def by_cp_without_times(old: Path, new: Path) -> None:
    subprocess.run(["cp", "-r", old, new], check=True, timeout=120)


@pytest.fixture(scope="module")
def packed(homes: Path) -> Iterator[tuple[Path, bytes]]:
    """A home with the snapshot `box/big` and no guest that runs, and what its forks have."""
    place = Path(tempfile.mkdtemp(prefix="packed-", dir=homes))
    try:
        with shell_in(place / "home") as shell:
            _, expected = compacted_snapshot(shell)
            yield place / "home", expected
    finally:
        shutil.rmtree(place)


@pytest.mark.deep
@pytest.mark.parametrize("copy", [by_cp, by_tar, by_cp_without_times])
def test_in_a_copied_home(
    packed: tuple[Path, bytes], tmp_path: Path, copy: Callable[[Path, Path], Any]
) -> None:
    home, expected = packed
    copied = home.parent / copy.__name__
    copy(home, copied)
    with shell_in(copied) as shell:
        (row,) = shell.json("snapshot", "ls", "--json")
        directory = Path(row["directory"])
        if copy is not by_cp:
            assert "mtime_ns" in differing(directory)
        forks_as_before(shell, directory, expected)
        assert (directory / CONFIRMED_FILE).exists() == bool(differing(directory))


@pytest.fixture
def captured(warm_home: Path) -> Iterator[bytes]:
    """The warm home has the snapshot `box/big`, and no guest that runs. The value is what its forks have."""
    shell = Shell(warm_home)
    shell("fork", "--name", "box", "warm")
    try:
        shell("exec", "box", "sh", "-c", "head -c 1000000 /dev/urandom > /tmp/more")
        expected = sum_in(shell, "box")
        shell("snapshot", "create", "--name", "big", "box")
    finally:
        shell("rm", "-f", "box")
    yield expected
    shell("snapshot", "rm", "box/big")


def test_in_the_lower_layer_of_an_overlay(warm_home: Path, captured: bytes) -> None:
    with mounted("-t", "tmpfs", "-o", "size=512m", "tmpfs") as writable:
        for name in ("upper", "work"):
            (writable / name).mkdir()
        layers = f"lowerdir={warm_home},upperdir={writable}/upper,workdir={writable}/work"
        with mounted("-t", "overlay", "-o", layers, "overlay") as place, shell_in(place) as shell:
            (row,) = shell.json("snapshot", "ls", "--json")
            forks_as_before(shell, Path(row["directory"]), captured)
