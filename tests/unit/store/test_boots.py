"""The boots that have had a home open: kept in its database, also for homes from before they were."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from ramet.store import boots
from ramet.store.migrations import MIGRATIONS
from ramet.store.records import Store
from ramet.system import process_ref
from ramet.system.machine import machine_id, this_boot
from ramet.system.process_ref import boot_id

OLD_BOOT = "11111111-2222-3333-4444-555555555555"


@pytest.fixture(autouse=True)
def no_past(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_ref, "_past_boots", set())


def rows(path: Path) -> list[tuple[str, str]]:
    with sqlite3.connect(path) as connection:
        found = connection.execute("SELECT boot_id, machine_id FROM boot ORDER BY rowid").fetchall()
    connection.close()
    return found


def test_a_boot_is_written_down_once(tmp_path: Path) -> None:
    for _ in range(3):
        Store(tmp_path / "ramet.db").close()
    assert rows(tmp_path / "ramet.db") == [(boot_id(), machine_id())]


def test_after_a_reboot_the_boot_before_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = this_boot()
    before = now._replace(boot_id=OLD_BOOT, booted_at_s=now.booted_at_s - 3600)
    with monkeypatch.context() as earlier:
        earlier.setattr(boots, "this_boot", lambda: before)
        Store(tmp_path / "ramet.db").close()
    Store(tmp_path / "ramet.db").close()
    assert process_ref._past_boots == {OLD_BOOT}


def test_another_machines_boot_is_none_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = this_boot()
    theirs = now._replace(boot_id=OLD_BOOT, machine_id="f" * 32, booted_at_s=now.booted_at_s - 3600)
    with monkeypatch.context() as there:
        there.setattr(boots, "this_boot", lambda: theirs)
        Store(tmp_path / "ramet.db").close()
    Store(tmp_path / "ramet.db").close()
    assert process_ref._past_boots == set()


def test_boots_in_records_from_before_are_this_machines(tmp_path: Path) -> None:
    """Until then every other boot id meant a restart of this machine."""
    connection = sqlite3.connect(tmp_path / "ramet.db", isolation_level=None)
    for number, script in enumerate(MIGRATIONS[:3], start=1):
        connection.executescript(script)
        connection.execute(f"PRAGMA user_version = {number}")
    connection.execute(
        "INSERT INTO instance (id, body) VALUES ('a', json(?))",
        (f'{{"name": "a", "vmm": {{"process": {{"boot_id": "{OLD_BOOT}"}}}}, "owner": null}}',),
    )
    connection.execute(
        "INSERT INTO snapshot (id, body) VALUES ('b', json(?))",
        (f'{{"name": "b", "source": "a", "maker": {{"boot_id": "{boot_id()}"}}}}',),
    )
    connection.close()
    Store(tmp_path / "ramet.db").close()
    assert sorted(rows(tmp_path / "ramet.db")) == sorted(
        [(OLD_BOOT, machine_id()), (boot_id(), machine_id())]
    )
    assert process_ref._past_boots == {OLD_BOOT}
