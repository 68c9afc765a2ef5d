"""A watcher's note that an instance couldn't be started again: never while another job starts it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from ramet.engine.lifecycle import watch
from ramet.model.lifecycle import State
from ramet.model.record import Intent
from ramet.paths import Home
from ramet.store.records import Store
from ramet.system import process_ref
from tests.support.stored_homes import stored as stored


@pytest.mark.parametrize("is_being_started", [True, False])
def test_a_job_that_takes_long_is_no_failure(is_being_started: bool, stored: Home) -> None:
    store = Store(stored.database)
    try:
        (record, *_) = [row for row in store.all() if row.name == "first"]
        if is_being_started:
            intent = Intent(what="start", by=process_ref.this_process())
            store.change(record.id, lambda row: msgspec.structs.replace(row, pending=intent))
        context: Any = SimpleNamespace(store=store)
        watch._note_failure(context, record, "another job has been changing it for 60 s")
        state = store.get(record.id).state
        assert state is (State.STOPPED if is_being_started else State.FAILED)
    finally:
        store.close()
