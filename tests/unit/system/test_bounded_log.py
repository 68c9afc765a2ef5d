"""Logs that stay bounded while somebody writes them."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ramet.system import bounded_log
from ramet.units import KIB, MIB

_LINE = b"%07d: what the guest says\n"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "console.log"


def lines(first: int, size_bytes: int) -> bytes:
    data = b"".join(_LINE % number for number in range(first, first + size_bytes // len(_LINE % 0) + 1))
    return data[:size_bytes]


def test_a_small_log_is_left_alone(log: Path) -> None:
    assert not bounded_log.trim(log)
    log.write_bytes(lines(0, MIB))
    assert not bounded_log.trim(log)
    assert log.stat().st_size == MIB
    assert not bounded_log.previous(log).exists()


def test_a_large_log_is_cut_to_its_end_at_a_line(log: Path) -> None:
    data = lines(0, 3 * MIB)
    log.write_bytes(data)
    assert bounded_log.trim(log)
    kept = bounded_log.previous(log).read_bytes()
    assert log.stat().st_size == 0
    assert data.endswith(kept)
    assert data[: -len(kept)].endswith(b"\n")
    assert bounded_log.KEEP_BYTES - 100 < len(kept) <= bounded_log.KEEP_BYTES
    assert not bounded_log.trim(log)
    assert [entry.name for entry in log.parent.iterdir() if ".tmp" in entry.name] == []


def test_a_whole_line_at_the_cut_is_kept(log: Path) -> None:
    log.write_bytes(b"x" * 90 + b"\n" + b"y" * 9 + b"\n")
    assert bounded_log.trim(log, keep_bytes=10, above_bytes=50)
    assert bounded_log.previous(log).read_bytes() == b"y" * 9 + b"\n"


def test_without_line_ends_the_end_is_kept_all_the_same(log: Path) -> None:
    log.write_bytes(b"x" * 1000)
    assert bounded_log.trim(log, keep_bytes=100, above_bytes=500)
    assert len(bounded_log.previous(log).read_bytes()) in (100, 101)


def test_who_trims_holds_the_log_and_others_leave_it(log: Path) -> None:
    log.write_bytes(lines(0, 2 * MIB))
    with log.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert not bounded_log.trim(log)
        assert log.stat().st_size == 2 * MIB
    assert bounded_log.trim(log)


_APPENDER = """
import os, sys, time
log = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
for block in range(600):
    os.write(log, b"".join(b"%07d: what the guest says\\n" % (block * 200 + line) for line in range(200)))
    time.sleep(0.002)
"""
_TRIMMER = """
import sys, time
from pathlib import Path
from ramet.system import bounded_log
cut = 0
print("ready", flush=True)
while not Path(sys.argv[2]).exists():
    cut += bounded_log.trim(Path(sys.argv[1]))
    time.sleep(0.002)
print(cut)
"""


def test_a_writer_and_two_trimmers_at_once(log: Path, tmp_path: Path) -> None:
    done = tmp_path / "done"
    trimmers = [
        subprocess.Popen([sys.executable, "-c", _TRIMMER, log, done], stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    for trimmer in trimmers:
        assert trimmer.stdout is not None
        assert trimmer.stdout.readline() == b"ready\n"
    subprocess.run([sys.executable, "-I", "-S", "-c", _APPENDER, log], check=True, timeout=60)
    done.touch()
    cuts = [int(trimmer.communicate(timeout=30)[0]) for trimmer in trimmers]
    assert 1 <= sum(cuts) <= 3  # 3.3 MiB, cut each time it exceeds 1 MiB
    assert log.stat().st_size <= 2 * MIB
    found = bounded_log.tail(log, MIB).splitlines()
    assert found[-1] == (_LINE % 119_999).rstrip()
    numbers = [int(line[:7]) for line in found[1:]]
    assert numbers == sorted(set(numbers))  # nothing twice, nothing torn, nothing out of order


def test_tail_joins_what_was_cut_off_with_what_came_since(log: Path) -> None:
    assert bounded_log.tail(log, 100) == b""
    log.write_bytes(lines(0, 2 * MIB))
    bounded_log.trim(log)
    with log.open("ab") as writer:
        writer.write(b"and then\n")
    assert bounded_log.tail(log, 9) == b"and then\n"
    assert bounded_log.tail(log, 4) == b"hen\n"
    joined = bounded_log.tail(log, 10 * KIB)
    assert joined == bounded_log.previous(log).read_bytes()[9 - 10 * KIB :] + b"and then\n"
    assert len(bounded_log.tail(log, 10 * MIB)) == bounded_log.previous(log).stat().st_size + 9


@pytest.mark.proves("I8")
def test_a_link_or_a_fifo_in_the_place_of_a_log_is_refused(log: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(lines(0, 2 * MIB))
    log.symlink_to(precious)
    for touch in (bounded_log.trim, lambda path: bounded_log.tail(path, 100)):
        with pytest.raises(OSError, match=r"console\.log"):
            touch(log)
    log.unlink()
    os.mkfifo(log)
    with pytest.raises(OSError, match="not a regular file"):
        bounded_log.tail(log, 100)
    assert precious.stat().st_size == 2 * MIB
