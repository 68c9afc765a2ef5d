"""How long tests take, as `make durations` has recorded it: what is begun first, and what is where.

`durations.json` has for each test function the mean of its seconds, fixtures included, over all its
parameters; a function that takes less than `_SHORT_S` is left out. Its key is the file's name without the
folder: a file that is moved keeps its durations.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

FILE: Final = Path(__file__).with_name("durations.json")
UNKNOWN_S: Final = 0.1
"""A guess for a test that hasn't been recorded: new ones are seldom long."""
_SHORT_S: Final = 0.2


def key_of(nodeid: str) -> str:
    """The function of a test, whatever its folder and its parameters."""
    path, _, name = nodeid.partition("::")
    return f"{path.rpartition('/')[2]}::{name.partition('[')[0]}"


def load(file: Path = FILE) -> dict[str, float]:
    """Seconds by key; nothing where nothing has been recorded."""
    try:
        recorded: dict[str, float] = json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    return recorded


class Recorder:
    """A pytest plugin (`--record-durations`): measures what is run and writes it beside what was known
    before.

    A function is recorded anew when one of its tests was run, and forgotten when its file has gone. The order
    of keys is by time, so that the file reads as a list of what is long.
    """

    def __init__(self, file: Path = FILE) -> None:
        self._file = file
        self._seconds: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._seconds[report.nodeid] = self._seconds.get(report.nodeid, 0) + report.duration

    def pytest_sessionfinish(self) -> None:
        files = {path.name for path in self._file.parent.rglob("test_*.py")}
        self._file.write_text(as_text(merged(load(self._file), self._seconds, files)))


def merged(known: Mapping[str, float], measured: Mapping[str, float], files: set[str]) -> dict[str, float]:
    """`known`, with the functions of `measured` (seconds by test) anew; only what is in one of `files`."""
    found: dict[str, list[float]] = {}
    for nodeid, seconds in measured.items():
        found.setdefault(key_of(nodeid), []).append(seconds)
    means = {key: round(sum(each) / len(each), 1) for key, each in found.items()}
    kept = {key: seconds for key, seconds in {**known, **means}.items() if seconds >= _SHORT_S}
    return {key: seconds for key, seconds in kept.items() if key.partition("::")[0] in files}


def as_text(durations: Mapping[str, float]) -> str:
    """JSON, the longest first, a line each."""
    ordered = dict(sorted(durations.items(), key=lambda item: (-item[1], item[0])))
    return re.sub(r"\n +", "\n  ", json.dumps(ordered, indent=2)) + "\n"
