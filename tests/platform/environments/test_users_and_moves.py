"""The job by a user whom the system doesn't know, by one with hardly any processes, and in a moved home."""

from __future__ import annotations

import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import assert_nothing_left
from tests.platform.environments import commands, job
from tests.platform.environments.job import STATE
from tests.platform.environments.matrix import Environment
from tests.platform.environments.surroundings import Surroundings
from tests.platform.environments.test_matrix import does
from tests.platform.not_root.conftest import Account, install
from tests.side_by_side import tell

pytestmark = [pytest.mark.vm, pytest.mark.deep, pytest.mark.timeout(400)]

STRANGER = 54321
"""A user id without a passwd entry, as containers are started with."""


@pytest.fixture(scope="module")
def stranger() -> Iterator[Account]:
    """A user without a passwd entry and without `HOME`, with ramet where this user can read it."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    try:
        pwd.getpwuid(STRANGER)
    except KeyError:
        pass  # as it has to be
    else:
        pytest.skip(f"there is a user with the id {STRANGER} here")
    with tempfile.TemporaryDirectory(prefix="ramet-stranger-") as directory:
        Path(directory).chmod(0o755)
        entry = pwd.struct_passwd(("", "x", STRANGER, STRANGER, "", directory, ""))
        account = Account(Path(directory), entry)
        install(account)
        shutil.copy(job.__file__, account.home / "job.py")
        del account.environment["HOME"]
        account.environment["RAMET_CACHE"] = str(account.home / ".cache" / "ramet")
        yield account


def test_a_user_without_a_passwd_entry(stranger: Account) -> None:
    home = stranger.home / "state"
    done = stranger.run(stranger.python, stranger.home / "job.py", home, "job-", RAMET_HOME=str(home))
    assert done.returncode == 0, done.stderr
    assert_nothing_left(home)
    tell("environment | a user without a passwd entry or HOME | done by program")


def test_without_home_and_passwd_entry_both_variables_are_named(stranger: Account) -> None:
    done = stranger.run(stranger.python, "-m", "ramet.cli.main", "ps")
    assert done.returncode == 5, done
    assert "RAMET_HOME" in done.stderr
    assert " HOME" in done.stderr
    assert "Traceback" not in done.stderr
    tell("environment | no passwd entry, no HOME, no RAMET_HOME | refused: exit 5, both variables named")


@pytest.mark.parametrize("most", [40, 2])
def test_a_limit_on_processes(stranger: Account, most: int) -> None:
    """RLIMIT_NPROC counts the user's threads, and holds for whoever isn't root (getrlimit(2))."""
    home = stranger.home / f"state-{most}"
    limit = ("prlimit", f"--nproc={most}")
    program = (stranger.python, stranger.home / "job.py", home, "job-")
    done = stranger.run(*limit, *program, RAMET_HOME=str(home))
    if most > 2:
        assert done.returncode == 0, done.stderr
        tell(f"environment | ulimit -u {most} | done by program")
    else:
        assert done.returncode != 0
        assert "RLIMIT_NPROC" in done.stderr or "ulimit -u" in done.stderr, done.stderr
        tell(f"environment | ulimit -u {most} | refused: the limit named, nothing left")
    if home.exists():
        assert_nothing_left(home)


@pytest.mark.parametrize("kilobytes", [8_000_000, 300_000])
def test_a_limit_on_address_space(stranger: Account, kilobytes: int) -> None:
    home = stranger.home / f"state-{kilobytes}"
    limit = ("prlimit", f"--as={kilobytes * 1024}")
    program = (stranger.python, stranger.home / "job.py", home, "job-")
    done = stranger.run(*limit, *program, RAMET_HOME=str(home))
    if kilobytes > 1_000_000:
        assert done.returncode == 0, done.stderr
        tell(f"environment | ulimit -v {kilobytes} | done by program")
    else:
        assert done.returncode != 0
        assert "RLIMIT_AS" in done.stderr or "ulimit -v" in done.stderr, done.stderr
        tell(f"environment | ulimit -v {kilobytes} | refused: the limit named, nothing left")
    if home.exists():
        assert_nothing_left(home)


def test_a_home_that_was_moved(directory: Path, exported: Path) -> None:
    before, after = directory / "before", directory / "after"
    ramet = commands.plain(before)
    ramet("snapshot", "import", os.fspath(exported), "--name", "old")
    ramet("fork", "--name", "old", "old")
    pid = ramet.json("inspect", "old")["pid"]
    before.rename(after)
    does(Environment("home that was moved"), Surroundings(), after)
    moved = commands.plain(after)
    try:
        assert moved("exec", "old", "--", "cat", "/run/witness").out.split() == [STATE.encode()]
        assert moved.json("inspect", "old")["pid"] == pid
    finally:
        moved("rm", "-f", "old")
        moved("snapshot", "rm", "old")
    assert_nothing_left(after)
    tell("environment | home that was moved while a guest ran | done by program, the guest lives")
