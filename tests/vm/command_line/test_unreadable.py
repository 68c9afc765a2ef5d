"""A record that can't be read, beside others: real guests, on QEMU."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.conftest import living_in
from tests.support.namespaces import PID_NAMESPACE, ramet_in, require
from tests.support.shell import Shell


def _sql(shell: Shell, statement: str, *values: str) -> None:
    with closing(sqlite3.connect(shell.home / "ramet.db", isolation_level=None)) as database:
        database.execute(statement, values)


@pytest.fixture(scope="module")
def guest(warm_home: Path) -> Iterator[Shell]:
    """`ramet` on a home in which `box` runs, a fork of `warm`."""
    shell = Shell(warm_home)
    shell("fork", "--name", "box", "warm")
    yield shell
    shell("rm", "-f", "box")
    shell.close()


@pytest.fixture
def damaged(guest: Shell) -> Iterator[tuple[Shell, str]]:
    """The home of `box`, with a fork of it, `lost`, whose record can't be read; the fork's id."""
    guest("fork", "--name", "lost", "box")
    lost = guest.json("inspect", "lost", "--json")["id"]
    _sql(guest, "UPDATE instance SET body = json_set(body, '$.labels.attempt', 1) WHERE id = ?", lost)
    yield guest, lost
    _sql(guest, "UPDATE instance SET body = json_set(body, '$.labels', json('{}')) WHERE id = ?", lost)
    if any(instance["id"] == lost for instance in guest.json("ps", "-a", "--json")):
        guest("rm", "-f", lost)


@pytest.mark.vm
def test_a_record_that_cant_be_read_costs_nobody_else_anything(damaged: tuple[Shell, str]) -> None:
    shell, lost = damaged
    directory = shell.home / "instances" / lost
    running = living_in(directory)
    assert running

    done = shell("ps", "--json")
    assert f"lost ({lost})".encode() in done.stderr
    listed = {instance["name"]: instance for instance in shell.json("ps", "--json")}
    assert (listed["box"]["state"], listed["lost"]["state"]) == ("running", "unreadable")
    assert listed["lost"]["directory"] == str(directory)
    assert b"unreadable" in shell("ps").stdout
    assert shell("exec", "box", "echo", "here").stdout == b"here\n"
    shell("tree")
    shell("stats")

    for reference in ("lost", lost, lost[:6]):
        error = shell.json("inspect", reference, "--json", code=1)["error"]
        assert error["code"] == "unreadable"
        assert "left alone" in error["hint"]
    assert shell.json("run", "--name", "lost", "builtin", "--json", code=7)["error"]["code"] == "name_taken"
    shell("rm", "lost", code=1)
    assert living_in(directory) == running, "its guest runs on, whatever was asked of others or of it"

    assert shell.json("rm", "-f", "lost", "--json") == {"removed": [lost]}
    assert living_in(directory) == []
    assert not directory.exists()
    assert {instance["name"] for instance in shell.json("ps", "-a", "--json")} == {"box", "warm"}


@pytest.mark.vm
def test_its_vmm_is_ended_before_its_record_goes(damaged: tuple[Shell, str]) -> None:
    """Where nothing but its directory says which VMM is its own."""
    shell, lost = damaged
    _sql(shell, "UPDATE instance SET body = '[]' WHERE id = ?", lost)
    directory = shell.home / "instances" / lost
    assert living_in(directory)
    shell("ps")
    assert living_in(directory)
    shell("rm", "-f", lost)
    assert living_in(directory) == []


@pytest.mark.vm
def test_where_its_vmm_cannot_be_seen_nothing_is_removed(damaged: tuple[Shell, str]) -> None:
    """Nor is it known which process to look for: that somebody listens in its directory tells."""
    require(*PID_NAMESPACE)
    shell, lost = damaged
    _sql(shell, "UPDATE instance SET body = '[]' WHERE id = ?", lost)
    directory = shell.home / "instances" / lost
    running = living_in(directory)
    done = ramet_in(PID_NAMESPACE, shell.home, "rm", "-f", lost)
    assert (done.returncode, "can't be seen from here" in done.stderr) == (5, True), done.stderr
    assert living_in(directory) == running
    shell("rm", "-f", lost)


@pytest.mark.vm
def test_a_home_without_its_database_keeps_its_guests(guest: Shell, tmp_path: Path) -> None:
    """A new database would know none of them."""
    running = living_in(guest.home)
    assert running
    kept = {path: path.rename(tmp_path / path.name) for path in guest.home.glob("ramet.db*")}
    try:
        error = guest.json("ps", "--json", code=1)["error"]
        assert error["code"] == "store"
        guest("rm", "-f", "box", code=1)
        assert living_in(guest.home) == running
    finally:
        for left in guest.home.glob("ramet.db*"):
            left.unlink()
        for before, after in kept.items():
            after.rename(before)
    assert guest("exec", "box", "echo", "here").stdout == b"here\n"


@pytest.mark.vm
def test_a_snapshot_whose_record_cant_be_read_is_named_and_removable(guest: Shell) -> None:
    lost = guest.json("snapshot", "create", "box", "--name", "lost", "--json")["id"]
    good = guest.json("snapshot", "create", "box", "--name", "good", "--json")["id"]
    _sql(guest, "UPDATE snapshot SET body = json_set(body, '$.labels.attempt', 1) WHERE id = ?", lost)
    done = guest("snapshot", "ls", "-q")
    assert done.stdout.split() == [good.encode()]
    assert lost.encode() in done.stderr
    assert (guest.home / "snapshots" / lost / "manifest.json").exists()
    assert guest.json("fork", "lost", "--json", code=1)["error"]["code"] == "unreadable"
    guest("snapshot", "rm", lost, code=1)
    guest("snapshot", "rm", "-f", lost, good)
    assert list((guest.home / "snapshots").iterdir()) == []
