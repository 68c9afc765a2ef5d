"""Homes of which there is nothing but the database."""

from __future__ import annotations

from pathlib import Path

import pytest

from ramet.model.lifecycle import State
from ramet.model.record import Machine, Record
from ramet.model.snapshot import SnapshotRecord
from ramet.paths import Home
from ramet.store.records import Store


def record(name: str, instance_id: str) -> Record:
    """A stopped instance."""
    return Record(
        id=instance_id,
        name=name,
        state=State.STOPPED,
        driver="qemu",
        image="builtin",
        machine=Machine(
            accelerator="tcg",
            machine_type="pc",
            cpu_model="max",
            memory_bytes=1,
            cpus=1,
            kernel_arguments="",
            agent_ports=1,
        ),
        kernel_version="6.1",
        parent=None,
        generation=1,
        machine_id="0" * 32,
        created_at="2030-01-01T00:00:00Z",
        labels={"team": "a"},
        auto_remove=False,
        owner=None,
    )


@pytest.fixture
def stored(home: Path) -> Home:
    """A home with two stopped instances and no VMM."""
    made = Home(home)
    made.make()
    store = Store(made.database)
    store.add([record("first", "aaaabbbbcccc"), record("second", "aaaa11112222")])
    store.close()
    return made


@pytest.fixture
def captured(stored: Home) -> Home:
    """The same home with snapshots, of which there is nothing but the rows: of `first`, and of one that is
    gone.
    """
    store = Store(stored.database)
    store.snapshots.add(
        [
            SnapshotRecord(
                id=snapshot_id,
                name=name,
                source=source,
                source_name=source_name,
                created_at="2030-01-01T00:00:00Z",
                labels={},
                maker=None,
            )
            for snapshot_id, name, source, source_name in (
                ("beef00000000", "aaaa1111", "aaaabbbbcccc", "first"),
                ("aaaabbbb0000", "base", "aaaabbbbcccc", "first"),
                ("aaaacccc0000", "base", "ffff00000000", "gone"),
                ("aaaadddd0000", "first", "ffff00000000", "gone"),
            )
        ]
    )
    store.close()
    return stored
