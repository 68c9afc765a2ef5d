"""Parts whose facts have changed: the content decides, is read once, and is never believed for another."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ramet.engine.manifest import read_manifest
from ramet.errors import DamagedError
from ramet.memory import confirmed
from ramet.memory.integrity import PartFacts, digest, facts_of
from ramet.paths import CONFIRMED_FILE, MANIFEST_FILE
from ramet.system.copying import copy_sparse
from ramet.system.files import allocated_bytes, punch_hole
from ramet.units import MIB

DATA = bytes(range(1, 255)) * 4000


@pytest.fixture
def part(tmp_path: Path) -> Path:
    path = tmp_path / "mem"
    path.write_bytes(DATA + bytes(MIB))
    with path.open("rb") as file:
        os.fsync(file.fileno())
    path.chmod(0o444)
    return path


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files of which content was read."""
    read: list[Path] = []

    def noted(path: Path) -> str:
        read.append(path)
        return digest(path)

    monkeypatch.setattr(confirmed, "digest", noted)
    monkeypatch.setattr(confirmed, "_remembered", {})
    return read


def other_times(path: Path) -> None:
    """As after `tar`, or a tool that keeps whole seconds."""
    os.utime(path, (1, 1))


def other_permissions(path: Path) -> None:
    path.chmod(0o644)


def rewritten(path: Path) -> None:
    """As a restored backup: another inode, later, its zeros holes or its holes zeros."""
    path.rename(path.with_name("old"))
    copy_sparse(path.with_name("old"), path)


def fewer_blocks(path: Path) -> None:
    """Zeros become a hole, and the times are put back: as a sparse copy that keeps them (`rsync -aS`)."""
    facts = path.stat()
    path.chmod(0o600)
    with path.open("r+b") as file:
        if not punch_hole(file.fileno(), MIB, MIB):
            pytest.skip("this filesystem has no holes")
    path.chmod(0o444)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


@pytest.mark.parametrize("change", [other_times, other_permissions, rewritten, fewer_blocks])
def test_whole_content_is_confirmed_once(
    part: Path, read: list[Path], change: Callable[[Path], None]
) -> None:
    facts, expected = facts_of(part), digest(part)
    change(part)
    confirmed.require_intact(part, "mem", facts, expected, part.parent)
    assert read == [part]
    for _ in range(3):
        confirmed.require_intact(part, "mem", facts, expected, part.parent)
        confirmed._remembered.clear()  # as in another process
    assert read == [part], "what was found is kept beside the capture"
    assert part.stat().st_mode & 0o777 == 0o444, "nobody can write it, as when it was published"


@pytest.mark.parametrize("change", [other_times, other_permissions, rewritten, fewer_blocks])
def test_other_content_is_damage_whatever_was_confirmed(
    part: Path, read: list[Path], change: Callable[[Path], None]
) -> None:
    facts, expected = facts_of(part), digest(part)
    change(part)
    confirmed.require_intact(part, "mem", facts, expected, part.parent)
    part.chmod(0o600)
    with part.open("r+b") as file:
        file.write(b"other")
    part.chmod(0o444)
    for _ in range(2):
        with pytest.raises(DamagedError, match=r"mtime_ns is .*; its content isn't what it was either"):
            confirmed.require_intact(part, "mem", facts, expected, part.parent)


def test_a_hole_punched_into_data_is_found_though_the_times_were_put_back(
    part: Path, read: list[Path]
) -> None:
    facts, expected = facts_of(part), digest(part)
    times = part.stat()
    part.chmod(0o600)
    with part.open("r+b") as file:
        if not punch_hole(file.fileno(), 0, 64 * 1024):
            pytest.skip("this filesystem has no holes")
    part.chmod(0o444)
    os.utime(part, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(DamagedError, match="allocated_bytes is"):
        confirmed.require_intact(part, "mem", facts, expected, part.parent)


def test_while_the_facts_hold_nothing_is_read(part: Path, read: list[Path]) -> None:
    facts, expected = facts_of(part), digest(part)
    confirmed.require_intact(part, "mem", facts, expected, part.parent)
    os.link(part, part.with_name("fork"))
    confirmed.require_intact(part.with_name("fork"), "mem", facts, expected, part.parent)
    assert read == []
    assert not (part.parent / CONFIRMED_FILE).exists()


def test_more_blocks_than_before_say_nothing(part: Path, read: list[Path]) -> None:
    """Holes filled with zeros, a filesystem that compressed less: size and time say that nobody wrote."""
    facts = facts_of(part)
    fewer = PartFacts(facts.size_bytes, facts.allocated_bytes - 4096, facts.mode, facts.mtime_ns)
    confirmed.require_intact(part, "mem", fewer, digest(part), part.parent)
    assert read == []


def test_without_a_digest_times_and_size_decide(part: Path, read: list[Path]) -> None:
    facts = facts_of(part)
    more = PartFacts(facts.size_bytes, facts.allocated_bytes + 4096, facts.mode, facts.mtime_ns)
    confirmed.require_intact(part, "mem", more, None, part.parent)
    other_times(part)
    with pytest.raises(DamagedError, match="mtime_ns is"):
        confirmed.require_intact(part, "mem", facts, None, part.parent)
    assert read == []


def test_what_was_confirmed_of_another_part_or_digest_holds_for_nothing(part: Path, read: list[Path]) -> None:
    facts, expected = facts_of(part), digest(part)
    other_times(part)
    confirmed.require_intact(part, "mem", facts, expected, part.parent)
    with pytest.raises(DamagedError):
        confirmed.require_intact(part, "mem", facts, expected[:-1] + "x", part.parent)
    confirmed.require_intact(part, "mem-2", facts, expected, part.parent)
    assert read == [part, part, part]


@pytest.mark.parametrize("garbage", [b"", b"{", b'{"mem": 1}', b"\xff" * 100])
def test_a_record_that_cant_be_read_costs_another_reading(
    part: Path, read: list[Path], garbage: bytes
) -> None:
    facts, expected = facts_of(part), digest(part)
    other_times(part)
    (part.parent / CONFIRMED_FILE).write_bytes(garbage)
    confirmed.require_intact(part, "mem", facts, expected, part.parent)
    confirmed._remembered.clear()
    confirmed.require_intact(part, "mem", facts, expected, part.parent)
    assert read == [part]


def test_a_directory_that_cant_be_written_is_remembered_by_the_process(
    part: Path, read: list[Path], full: Path
) -> None:
    capture = full / "capture"
    capture.mkdir()
    moved = capture / "mem"
    moved.write_bytes(b"small")
    facts, expected = facts_of(moved), digest(moved)
    other_times(moved)
    with (full / "ballast").open("wb", buffering=0) as ballast:
        try:
            while ballast.write(bytes(4096)):
                pass
        except OSError:
            pass
    for _ in range(3):
        confirmed.require_intact(moved, "mem", facts, expected, capture)
    assert read == [moved]
    assert sorted(path.name for path in capture.iterdir()) == ["mem"]
    assert allocated_bytes(moved) > 0


def test_a_fifo_beside_a_capture_is_not_waited_for(part: Path, read: list[Path]) -> None:
    """A VMM that was taken over has worked there, and can leave one under any name."""
    facts, expected = facts_of(part), digest(part)
    for name in (CONFIRMED_FILE, MANIFEST_FILE):
        os.mkfifo(part.with_name(name))
    other_times(part)
    confirmed.require_intact(part, "mem", facts, expected, part.parent)
    assert read == [part]
    with pytest.raises(DamagedError, match="not a regular file"):
        read_manifest(part.parent)
