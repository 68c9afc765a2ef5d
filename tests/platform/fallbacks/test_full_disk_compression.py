"""A disk that is full while memory is compressed or decompressed: what is there stays, and says so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ramet.units import KIB, MIB
from tests.platform.fallbacks.conftest import SmallHome
from tests.platform.fallbacks.test_full_disk import Unharmed, said

pytestmark = pytest.mark.vm


@pytest.fixture
def snapshot(on_ext4: SmallHome) -> Iterator[Path]:
    """The directory of a snapshot of the witness, `witness/s`, whose mem-file is a copy: its room can be
    given back.
    """
    on_ext4.shell("fork", "--no-share", "--name", "copy", "warm")
    on_ext4.shell("snapshot", "create", "copy", "--name", "s")
    on_ext4.shell("rm", "-f", "copy")
    yield Path(on_ext4.shell.json("snapshot", "inspect", "copy/s", "--json")["directory"])
    on_ext4.shell("snapshot", "rm", "s")


def compression(home: SmallHome) -> str:
    return str(home.shell.json("snapshot", "inspect", "copy/s", "--json")["compression"])


@pytest.mark.parametrize(
    "room_bytes", [0, *(pytest.param(room, marks=pytest.mark.deep) for room in (64 * KIB, 5 * MIB))]
)
def test_compress(on_ext4: SmallHome, snapshot: Path, room_bytes: int) -> None:
    with on_ext4.left(room_bytes), Unharmed(on_ext4):
        text = said(on_ext4, "snapshot", "compress", "copy/s")
        assert compression(on_ext4) == "raw"
    assert "No space left on device" in text or "disk is full" in text
    assert "free" in text
    assert not list(snapshot.glob("*.zst"))
    assert not list(snapshot.glob(".tmp-*"))
    on_ext4.shell("snapshot", "compress", "copy/s")


@pytest.mark.parametrize("room_bytes", [pytest.param(64 * KIB, marks=pytest.mark.deep), 24 * MIB])
def test_decompress(on_ext4: SmallHome, snapshot: Path, room_bytes: int) -> None:
    """Forks of what is compressed need room for it once: none is made, and nothing is lost."""
    on_ext4.shell("snapshot", "compress", "copy/s")
    with on_ext4.left(room_bytes), Unharmed(on_ext4):
        for words in (("snapshot", "decompress", "copy/s"), ("fork", "-n", "2", "--name", "late", "copy/s")):
            text = said(on_ext4, *words)
            assert "are needed" in text or "No space left on device" in text
            assert "hint: free some space" in text
        assert compression(on_ext4) == "compressed"
        assert not (snapshot / "mem").exists()
        assert not list(snapshot.glob(".tmp-*"))
    on_ext4.shell("fork", "-n", "2", "--name", "late", "copy/s")
    assert on_ext4.shell("exec", "late-1", "md5sum", "/tmp/data").stdout == on_ext4.data
    on_ext4.shell("rm", "-f", "late-1", "late-2")
