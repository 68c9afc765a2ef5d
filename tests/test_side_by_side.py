"""Who has to be alone waits for those that are there, and nobody comes in meanwhile."""

from __future__ import annotations

import fcntl
import threading
from pathlib import Path

import pytest

from tests import side_by_side


def test_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(side_by_side._VARIABLE, str(tmp_path))
    order: list[str] = []

    def enter(name: str, *, alone: bool) -> None:
        with side_by_side._turn(alone=alone):
            order.append(name)

    hermit = threading.Thread(target=enter, args=("alone",), kwargs={"alone": True}, daemon=True)
    newcomer = threading.Thread(target=enter, args=("newcomer",), kwargs={"alone": False}, daemon=True)
    with side_by_side._turn(alone=False):
        enter("company", alone=False)
        hermit.start()
        while is_free(tmp_path / "gate"):
            hermit.join(0.01)
        newcomer.start()
        newcomer.join(0.2)
        assert order == ["company"]
    for thread in (hermit, newcomer):
        thread.join(10)
    assert order == ["company", "alone", "newcomer"]


def is_free(lock: Path) -> bool:
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
