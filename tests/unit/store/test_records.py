"""The store: names are unique, changes atomic, several processes at once, old and new formats."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from ramet.errors import NameTakenError, NotFoundError, StoreError, WrongStateError
from ramet.model.lifecycle import Move, State
from ramet.model.names import new_id
from ramet.model.record import Machine, Record
from ramet.store.records import Store

MACHINE = Machine(
    accelerator="tcg",
    machine_type="pc",
    cpu_model="max",
    memory_bytes=1 << 28,
    cpus=1,
    kernel_arguments="",
    agent_ports=8,
)


def record(name: str, parent: str | None = None) -> Record:
    return Record(
        id=new_id(),
        name=name,
        state=State.CREATED,
        driver="qemu",
        image="builtin",
        machine=MACHINE,
        kernel_version="6.1",
        parent=parent,
        generation=1,
        machine_id="0" * 32,
        created_at="2026-01-01T00:00:00Z",
        labels={"a": "b"},
        auto_remove=False,
        owner=None,
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "ramet.db")


def test_records_come_back_as_they_were(store: Store) -> None:
    records = [record("one"), record("two", parent="x")]
    store.add(records)
    assert store.all() == records
    assert store.get(records[1].id) == records[1]


def test_a_taken_name_adds_nothing(store: Store) -> None:
    store.add([record("one")])
    with pytest.raises(NameTakenError, match="named one already") as caught:
        store.add([record("two"), record("one")])
    assert caught.value.exit_code == 7
    assert [row.name for row in store.all()] == ["one"]


def test_a_change_that_raises_changes_nothing(store: Store) -> None:
    one = record("one")
    store.add([one])
    with pytest.raises(WrongStateError):
        store.change(one.id, lambda it: it.moved(Move.RESUME))
    assert store.get(one.id) == one
    assert store.change(one.id, lambda it: it.moved(Move.BOOT), durable=True).state is State.RUNNING


def test_a_removed_record_is_not_found(store: Store) -> None:
    one = record("one")
    store.add([one])
    store.remove(one.id)
    store.remove(one.id)
    with pytest.raises(NotFoundError):
        store.get(one.id)
    with pytest.raises(NotFoundError):
        store.change(one.id, lambda it: it)


def test_a_newer_format_is_refused_and_untouched(store: Store, tmp_path: Path) -> None:
    store.close()
    with sqlite3.connect(tmp_path / "ramet.db") as db:
        db.execute("PRAGMA user_version = 999")
    db.close()
    with pytest.raises(StoreError, match="newer ramet"):
        Store(tmp_path / "ramet.db")


def test_a_damaged_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ramet.db"
    path.write_bytes(b"this is no database" * 1000)
    with pytest.raises(StoreError, match=r"ramet\.db"):
        Store(path)


@pytest.mark.slow
def test_an_empty_database_is_migrated_by_one_of_many(tmp_path: Path) -> None:
    """Eight processes open a new home; each adds a name of its own and one that all want."""
    script = (
        "import sys, msgspec; from pathlib import Path; from ramet.store.records import Store;"
        "from ramet.model.record import Record; from ramet.errors import NameTakenError;"
        "s = Store(Path(sys.argv[1])); r = msgspec.json.decode(sys.argv[2], type=Record); s.add([r])\n"
        "try: s.add([msgspec.structs.replace(r, id=r.id + 'x', name='shared')]); print('won')\n"
        "except NameTakenError: print('lost')"
    )
    path = tmp_path / "ramet.db"
    children = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(path), msgspec.json.encode(record(f"n{number}")).decode()],
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(8)
    ]
    said = [child.communicate(timeout=60)[0].strip() for child in children]
    assert sorted(said) == ["lost"] * 7 + ["won"]
    assert sorted(row.name for row in Store(path).all()) == sorted(
        [f"n{number}" for number in range(8)] + ["shared"]
    )
