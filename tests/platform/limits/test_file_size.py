"""A caller with a limit on file sizes (`ulimit -f`): a guest's disk is never shorter than it looks."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ramet.units import MIB
from tests.conftest import assert_nothing_left
from tests.support.shell import COMMAND, Shell
from tests.unit.system.test_rlimits import may_raise_hard_limits

pytestmark = pytest.mark.vm

_DISK_MIB = 32
_LIMIT_BYTES = 8 * MIB
_WRITTEN_MIB = 16


@pytest.fixture(scope="module")
def warm(homes: Path) -> Iterator[Shell]:
    """A home with the template `warm`, whose guest has a data disk that is larger than the limit."""
    home = homes / "file-size"
    home.mkdir()
    shell = Shell(home)
    booting = shell.start("run", "--name", "warm", "--disk", f"{_DISK_MIB}M", "builtin")
    said = booting.communicate(timeout=120)[1]
    if booting.returncode == 5:
        pytest.skip(said.decode())
    assert booting.returncode == 0, said
    shell("template", "warm")
    try:
        yield shell
    finally:
        shell("rm", "-f", *[instance["name"] for instance in shell.json("ps", "-a", "--json")])
        assert_nothing_left(home)


def limited(shell: Shell, limit: str, *words: str) -> subprocess.CompletedProcess[str]:
    """`ramet` as a shell starts it that has set `ulimit -f`."""
    return subprocess.run(
        ["prlimit", f"--fsize={limit}", *COMMAND, *words],
        env=shell.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def write_and_read_back(shell: Shell, name: str) -> None:
    """More than the limit, from the disk itself."""
    fill = (
        f"head -c {_WRITTEN_MIB * MIB} /dev/urandom > /tmp/f; md5sum < /tmp/f; dd if=/tmp/f of=/dev/vda bs=1M"
        f" conv=fsync 2>/dev/null && rm /tmp/f; echo 3 > /proc/sys/vm/drop_caches;"
        f" head -c {_WRITTEN_MIB * MIB} /dev/vda | md5sum"
    )
    written, read = shell("exec", name, "sh", "-c", fill).stdout.split(b"\n")[:2]
    assert written == read


def test_a_soft_limit_isnt_the_guests(warm: Shell) -> None:
    done = limited(warm, f"{_LIMIT_BYTES}:", "fork", "--name", "soft", "warm")
    assert done.returncode == 0, done.stderr
    write_and_read_back(warm, "soft")
    warm("rm", "-f", "soft")


def test_a_hard_limit_is_raised_or_refused_by_name(warm: Shell) -> None:
    done = limited(warm, str(_LIMIT_BYTES), "fork", "--name", "hard", "--json", "warm")
    if may_raise_hard_limits():
        assert done.returncode == 0, done.stderr
        write_and_read_back(warm, "hard")
        warm("rm", "-f", "hard")
        return
    assert done.returncode == 5, done
    error = json.loads(done.stdout)["forks"][0]["error"]
    assert error["code"] == "unavailable"
    assert "RLIMIT_FSIZE" in error["message"]
    assert "ulimit -f" in error["hint"]
    assert [instance["name"] for instance in warm.json("ps", "--json")] == ["warm"]


def test_what_ramet_writes_itself_fails_with_the_limits_name(warm: Shell) -> None:
    """The delta of a snapshot, here: the source runs on, and nothing is left."""
    warm("fork", "--name", "busy", "warm")
    warm("exec", "busy", "sh", "-c", f"head -c {8 * MIB} /dev/urandom > /tmp/more")
    done = limited(warm, f"{MIB}", "snapshot", "create", "busy")
    assert done.returncode == 1, done
    assert "File too large" in done.stderr
    assert "ulimit -f" in done.stderr
    assert warm.json("snapshot", "ls", "--json") == []
    assert len(warm("exec", "busy", "cat", "/tmp/more").stdout) == 8 * MIB
    warm("rm", "-f", "busy")
