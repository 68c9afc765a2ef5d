"""A plugin of the inner pytest: a JSON document a line for every phase of every test, written as it ends.

So what is known of the tests before one that hangs or takes the host down isn't lost.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

_FILE = "EMULATED_HOST_REPORT"


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A skip says why; a failure says all that pytest would."""
    if report.skipped and isinstance(report.longrepr, tuple):
        text = report.longrepr[2]
    else:
        text = report.longreprtext
        text += "".join(f"\n--- {name} ---\n{content}" for name, content in report.sections)
    _write(id=report.nodeid, when=report.when, outcome=report.outcome, text=text, seconds=report.duration)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """A file that can't be imported."""
    if report.failed:
        _write(id=report.nodeid, when="collect", outcome="failed", text=report.longreprtext, seconds=0)


def _write(**fields: Any) -> None:
    if place := os.environ.get(_FILE):
        with Path(place).open("a") as file:
            file.write(json.dumps(fields | {"at": time.time()}) + "\n")
