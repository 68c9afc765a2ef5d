"""A disk that is full at each stage of a capture, of its publication and of its compaction."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ramet
from ramet.engine.manifest import read_manifest
from ramet.paths import Home
from ramet.units import KIB, MIB
from tests.conftest import living_in
from tests.platform.fallbacks.conftest import SmallHome
from tests.platform.fallbacks.test_full_disk import said

pytestmark = [pytest.mark.vm, pytest.mark.anyio]

_SLACK_BYTES = 512 * KIB
_CHANGED_MIB = 20
_STAGES = [0, *(pytest.param(room, marks=pytest.mark.deep) for room in (64 * KIB, MIB)), 12 * MIB]
"""Not even a directory; not the links and the overlay; not the delta; not all of the delta."""


@pytest.fixture(scope="module")
def content(on_ext4: SmallHome) -> Iterator[bytes]:
    """What `source` has in memory: a running fork that has changed 20 MiB of it."""
    on_ext4.shell("fork", "--name", "source", "warm")
    fill = f"head -c {_CHANGED_MIB * MIB} /dev/urandom > /tmp/more; md5sum /tmp/data /tmp/more"
    yield on_ext4.shell("exec", "source", "sh", "-c", fill).stdout
    on_ext4.shell("rm", "-f", "source")


async def state(host: ramet.Host, mem_file: Path) -> list[Any]:
    """All that somebody could find of instances and captures."""
    home = Home(host.home)
    return [
        *([sorted(place.iterdir()) for place in (home.instances, home.snapshots, home.staging)]),
        sorted(living_in(host.home)),
        sorted((instance.name, instance.state) for instance in await host.list(everything=True)),
        await host.snapshots(),
        mem_file.stat().st_nlink,
    ]


@pytest.mark.proves("I2")
@pytest.mark.parametrize("room_bytes", _STAGES)
async def test_the_source_runs_on(on_ext4: SmallHome, content: bytes, room_bytes: int) -> None:
    mem_file = on_ext4.mem_file
    async with ramet.Host(on_ext4.root) as host:
        source = await host.get("source")
        with on_ext4.left(room_bytes):
            before, free_bytes = await state(host, mem_file), on_ext4.free_bytes()
            for words in (("snapshot", "create"), ("fork",), ("standby",)):
                text = said(on_ext4, *words, "source")
                assert "No space left on device" in text or "disk is full" in text, words
                assert "free" in text
                there = await source.exec("md5sum", "/tmp/data", "/tmp/more", timeout=60)
                assert there.stdout == content, words
                assert await state(host, mem_file) == before, words
                assert on_ext4.free_bytes() >= free_bytes - _SLACK_BYTES, words


async def test_with_room_for_the_delta_it_succeeds(on_ext4: SmallHome, content: bytes) -> None:
    """And there is none for a compacted one: the snapshot stays as it is, whole, with nothing beside it."""
    async with ramet.Host(on_ext4.root) as host:
        source = await host.get("source")
        with on_ext4.left((_CHANGED_MIB + 16) * MIB):
            snapshot = await source.snapshot("tight")
            before = sorted(path.name for path in snapshot.directory.iterdir())
            work(on_ext4)
            assert sorted(path.name for path in snapshot.directory.iterdir()) == before
            assert read_manifest(snapshot.directory).memory.delta_bytes >= _CHANGED_MIB * MIB
            (of_delta,) = await snapshot.fork(1, require_shared=True)
            assert (await snapshot.verify()).ok
        work(on_ext4)
        assert read_manifest(snapshot.directory).memory.delta is None
        assert (await snapshot.verify()).ok
        (of_whole,) = await snapshot.fork(1, require_shared=True)
        for fork in (of_delta, of_whole):
            assert (await fork.exec("md5sum", "/tmp/data", "/tmp/more", timeout=60)).stdout == content
            await fork.remove(force=True)
        free_bytes = on_ext4.free_bytes()
        await snapshot.remove()
        assert on_ext4.free_bytes() > free_bytes + _CHANGED_MIB * MIB
    on_ext4.witness()


def work(home: SmallHome) -> None:
    """The home's worker, after whichever is at work already."""
    words = [sys.executable, "-m", "ramet.engine.maintenance.worker", str(home.root)]
    subprocess.run(words, check=True, timeout=120, cwd="/", env=dict(os.environ))
