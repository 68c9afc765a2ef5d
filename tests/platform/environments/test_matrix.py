"""One job in every environment: it is done, or one clear error comes before anything is made. Nothing is
left, and guests of another environment live on.
"""

from __future__ import annotations

import os
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from tests.conftest import assert_nothing_left, living_in
from tests.platform.environments import commands, job
from tests.platform.environments.commands import Commands, run_commands
from tests.platform.environments.conftest import witness
from tests.platform.environments.matrix import MATRIX, Environment
from tests.platform.environments.surroundings import Surroundings
from tests.side_by_side import tell

pytestmark = [pytest.mark.vm, pytest.mark.deep, pytest.mark.timeout(400)]


@pytest.mark.parametrize("row", MATRIX, ids=lambda row: row.name)
def test_the_job(row: Environment, directory: Path, exported: Path) -> None:
    try_row(row, directory, exported)


def try_row(row: Environment, directory: Path, exported: Path) -> None:
    """Do the job in one environment, with a home below `directory`, and tell the table of it."""
    with row.around() as surroundings, row.place(directory) as home:
        if row.refused is not None:
            with witness(home, exported) if row.refused.beside else nullcontext():
                refuses(row, surroundings, home)
            tell(f"environment | {row.name} | refused: exit {row.refused.code}, nothing made")
            return
        beside: AbstractContextManager[None] = nullcontext() if row.own_home else witness(home, exported)
        with beside:
            began = time.monotonic()
            does(row, surroundings, home)
            took = time.monotonic() - began
        assert_nothing_left(home)
        tell(f"environment | {row.name} | done by {row.way} in {took:.1f} s, the witnesses live")


def does(row: Environment, surroundings: Surroundings, home: Path) -> None:
    """The job is done."""
    environment = {"RAMET_HOME": os.fspath(home)}
    if row.way == "commands":
        ramet = Commands(surroundings, environment, codes=row.codes, stdout=row.stdout)
        run_commands(ramet, "job-", hears=row.hears)
        left = commands.plain(home).json("ps", "-a")
        assert [instance["name"] for instance in left if instance["name"].startswith("job-")] == []
        return
    done = surroundings.run(job.__file__, os.fspath(home), "job-", *row.options, environment=environment)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert b"Traceback" not in done.stderr


def refuses(row: Environment, surroundings: Surroundings, home: Path) -> None:
    """One error says what is wrong, and nothing was made before it."""
    assert row.refused is not None
    before = sorted(home.rglob("*")) if home.exists() else None
    instances = sorted(path.name for path in home.glob("instances/*"))
    done = Commands(surroundings, {"RAMET_HOME": os.fspath(home)}).attempt("run", "-d", "builtin")
    assert done.code == row.refused.code, done
    for words in row.refused.words:
        assert words in done.err, done
    assert "Traceback" not in done.err
    if row.refused.beside:
        assert sorted(path.name for path in (home / "instances").iterdir()) == instances
        return
    if row.refused.home_stays:
        assert_nothing_left(home)
    else:
        assert (sorted(home.rglob("*")) if home.exists() else None) == before
    assert living_in(home) == []
