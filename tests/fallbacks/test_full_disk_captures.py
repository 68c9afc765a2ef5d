"""A disk that is full at each stage of a capture, of its publication and of its compaction."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ramet.engine.manifest import read_manifest
from ramet.paths import Home
from ramet.units import KIB, MIB
from tests.conftest import living_in
from tests.fallbacks.conftest import SmallHome
from tests.fallbacks.test_full_disk import said

pytestmark = pytest.mark.vm

_SLACK_BYTES = 512 * KIB
_CHANGED_MIB = 20
_STAGES = [0, 64 * KIB, MIB, 12 * MIB]
"""Not even a directory; not the links and the overlay; not the delta; not all of the delta."""


class Source:
    """A running fork, `source`, that has changed 20 MiB of its memory."""

    def __init__(self, home: SmallHome) -> None:
        self.home = home
        home.shell("fork", "--name", "source", "warm")
        fill = f"head -c {_CHANGED_MIB * MIB} /dev/urandom > /tmp/more"
        home.shell("exec", "source", "sh", "-c", fill)
        self.content = self.said("source")

    def said(self, name: str) -> bytes:
        """What a guest has in memory."""
        return self.home.shell("exec", name, "md5sum", "/tmp/data", "/tmp/more").stdout

    def state(self) -> list[Any]:
        """All that somebody could find of instances and captures."""
        home = Home(self.home.root)
        places = (home.instances, home.snapshots, home.staging)
        shown = [(one["name"], one["state"]) for one in self.home.shell.json("ps", "-a", "--json")]
        return [
            *([sorted(place.iterdir()) for place in places]),
            *(sorted(living_in(self.home.root)), sorted(shown), self.home.mem_file.stat().st_nlink),
            self.home.shell.json("snapshot", "ls", "--json"),
        ]


@pytest.fixture(scope="module")
def source(on_ext4: SmallHome) -> Iterator[Source]:
    made = Source(on_ext4)
    yield made
    on_ext4.shell("rm", "-f", "source")


@pytest.mark.parametrize("words", [("snapshot", "create"), ("fork",), ("standby",)], ids=" ".join)
@pytest.mark.parametrize("room_bytes", _STAGES)
def test_the_source_runs_on(source: Source, room_bytes: int, words: tuple[str, ...]) -> None:
    home = source.home
    with home.left(room_bytes):
        before, free_bytes = source.state(), home.free_bytes()
        text = said(home, *words, "source")
        assert "No space left on device" in text or "disk is full" in text
        assert "free" in text
        assert source.said("source") == source.content
        assert source.state() == before
        assert home.free_bytes() >= free_bytes - _SLACK_BYTES
    home.witness()


def test_with_room_for_the_delta_it_succeeds(source: Source) -> None:
    """And there is none for a compacted one: the snapshot stays as it is, whole, with nothing beside it."""
    home = source.home
    with home.left((_CHANGED_MIB + 16) * MIB):
        home.shell("snapshot", "create", "--name", "tight", "source")
        (shown,) = home.shell.json("snapshot", "ls", "--json")
        directory = Path(shown["directory"])
        before = sorted(path.name for path in directory.iterdir())
        work(home)
        assert sorted(path.name for path in directory.iterdir()) == before
        assert read_manifest(directory).memory.delta_bytes >= _CHANGED_MIB * MIB
        home.shell("fork", "--require-shared", "--name", "of-tight", "tight")
        assert source.said("of-tight") == source.content
        home.shell("snapshot", "verify", "tight")
    work(home)
    assert read_manifest(directory).memory.delta is None
    home.shell("snapshot", "verify", "tight")
    home.shell("fork", "--require-shared", "--name", "compacted", "tight")
    assert source.said("compacted") == source.said("of-tight") == source.content
    free_bytes = home.free_bytes()
    home.shell("rm", "-f", "of-tight", "compacted")
    home.shell("snapshot", "rm", "tight")
    assert home.free_bytes() > free_bytes + _CHANGED_MIB * MIB
    home.witness()


def work(home: SmallHome) -> None:
    """The home's worker, after whichever is at work already."""
    words = [sys.executable, "-m", "ramet.engine.worker", str(home.root)]
    subprocess.run(words, check=True, timeout=120, cwd="/", env=dict(os.environ))
