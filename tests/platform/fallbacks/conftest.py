"""Homes on small filesystems made for the tests, mounted through a loop device. That wants root."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ramet.paths import MEM_FILE, Home
from ramet.units import GIB, MIB
from tests.conftest import assert_nothing_left
from tests.support.loop_filesystems import SYSTEM_PATH, mounted, xfs
from tests.support.shell import Shell

__all__ = ["xfs"]


@dataclass
class SmallHome:
    """A home on a filesystem of its own. It has the template `warm` and the running fork `witness`."""

    shell: Shell
    image: Path | None
    """The file that the filesystem lies in."""
    data: bytes
    """What every fork has to say of its memory."""

    @property
    def root(self) -> Path:
        """The home."""
        return self.shell.home

    @property
    def mem_file(self) -> Path:
        """The template's."""
        warm = next(
            instance for instance in self.shell.json("ps", "-a", "--json") if instance["name"] == "warm"
        )
        return Path(warm["directory"]) / MEM_FILE

    def memory(self, *options: str) -> dict[str, Any]:
        """The memory of a fork with `options`, by its receipt. The fork has answered, and is gone."""
        (receipt,) = self.shell.json("fork", "--name", "probe", "--json", *options, "warm")["forks"]
        assert self.shell("exec", "probe", "md5sum", "/tmp/data").stdout == self.data
        self.shell("rm", "-f", "probe")
        memory: dict[str, Any] = receipt["memory"]
        return memory

    def witness(self) -> None:
        """The fork that has been running all the time is unharmed."""
        assert self.shell("exec", "witness", "md5sum", "/tmp/data").stdout == self.data

    def free_bytes(self) -> int:
        """What the filesystem has left."""
        facts = os.statvfs(self.root)
        return facts.f_bavail * facts.f_frsize

    @contextmanager
    def left(self, room_bytes: int) -> Iterator[None]:
        """Only so much is free inside."""
        assert os.statvfs(self.root).f_blocks * os.statvfs(self.root).f_frsize < GIB, (
            "not the small filesystem"
        )
        ballast = self.root / "ballast"
        with ballast.open("wb", buffering=0) as file:
            # In ever smaller pieces, because the map of the file takes blocks too.
            piece_bytes = 64 * MIB
            while piece_bytes >= 4096:
                if self.free_bytes() - room_bytes >= piece_bytes:
                    try:
                        os.posix_fallocate(file.fileno(), ballast.stat().st_size, piece_bytes)
                        continue
                    except OSError:
                        pass
                piece_bytes //= 2
        try:
            yield
        finally:
            ballast.unlink()


@contextmanager
def immutable(path: Path) -> Iterator[None]:
    """The immutable attribute, which refuses links too (ioctl_iflags(2)). Skips where it can't be set."""
    done = subprocess.run(["chattr", "+i", path], capture_output=True, text=True, timeout=30)
    if done.returncode:
        pytest.skip(f"chattr: {done.stderr}")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", path], check=True, timeout=30)


def furnished(directory: Path, image: Path | None = None) -> Iterator[SmallHome]:
    """A home in `directory`, on whatever filesystem; empty again afterwards."""
    Home(directory).make()
    shell = Shell(directory)
    done = shell.start("run", "--name", "warm", "builtin")
    said = done.communicate(timeout=120)[1]
    if done.returncode == 5:
        pytest.skip(said.decode())
    assert done.returncode == 0, said
    shell("exec", "warm", "sh", "-c", "head -c 1048576 /dev/urandom > /tmp/data")
    data = shell("exec", "warm", "md5sum", "/tmp/data").stdout
    shell("template", "warm")
    shell("fork", "--name", "witness", "warm")
    try:
        yield SmallHome(shell, image, data)
    finally:
        shell.close()
        names = [instance["name"] for instance in shell.json("ps", "-a", "--json")]
        shell("rm", "-f", *names)
        assert_nothing_left(directory)


@pytest.fixture(scope="session")
def on_xfs(xfs: Path) -> Iterator[SmallHome]:
    """On an XFS with reflinks."""
    yield from furnished(xfs / "home")


@pytest.fixture(scope="session")
def on_ext4() -> Iterator[SmallHome]:
    """On an ext4 of 448 MiB, which is not the filesystem of the image cache."""
    mkfs = shutil.which("mkfs.ext4", path=SYSTEM_PATH)
    if mkfs is None:
        pytest.skip("mkfs.ext4 isn't installed (package e2fsprogs)")
    with tempfile.NamedTemporaryFile(prefix="ramet-ext4-") as image:
        image.truncate(448 * MIB)
        subprocess.run(
            [mkfs, "-q", "-m", "0", "-b", "4096", image.name], check=True, capture_output=True, timeout=60
        )
        with mounted("-t", "ext4", "-o", "loop", image.name) as place:
            yield from furnished(place / "home", Path(image.name))
