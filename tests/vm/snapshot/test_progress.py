"""Long work tells how far it is: what the command line shows, from real captures, files and forks."""

from __future__ import annotations

from collections.abc import Awaitable
from pathlib import Path
from typing import TypeVar

import pytest

import ramet
from ramet.progress import Progress, received_by

pytestmark = [pytest.mark.vm, pytest.mark.anyio]

T = TypeVar("T")


async def heard(work: Awaitable[T]) -> tuple[T, list[Progress]]:
    """The result of `work`, and its reports."""
    reports: list[Progress] = []
    with received_by(reports.append):
        result = await work
    for progress in reports:
        assert 0 <= progress.done <= max(progress.total, progress.done), progress
    return result, reports


async def test_captures_files_and_forks_report(host: ramet.Host, source: ramet.VM, tmp_path: Path) -> None:
    snapshot, reports = await heard(source.snapshot())
    stages = {progress.stage for progress in reports}
    assert {"copying memory", "writing memory"} <= stages
    assert any(stage.startswith("reading ") for stage in stages), "the digests"

    _, reports = await heard(snapshot.verify())
    parts = {part.name for part in (await snapshot.inspect()).parts}
    assert {progress.stage.removeprefix("reading ") for progress in reports} <= parts
    assert all(progress.total for progress in reports)

    file = tmp_path / "file"
    _, reports = await heard(snapshot.export(file))
    assert reports[-1].done == reports[-1].total > 0
    assert [progress.done for progress in reports] == sorted(progress.done for progress in reports)

    imported, reports = await heard(host.import_snapshot(file, name="again"))
    received = [progress for progress in reports if progress.stage == "receiving"]
    assert 0 < received[-1].done <= received[-1].total, "zeros don't come"

    _, reports = await heard(imported.compress())
    packed = [progress for progress in reports if progress.stage == "" and progress.total]
    assert packed[-1].done == packed[-1].total

    report, reports = await heard(imported.fork_report(3))
    assert all(fork.ok for fork in report.forks)
    assert {progress.stage for progress in reports} >= {"decompressing", ""}
    counted = [progress for progress in reports if progress.unit == "forks"]
    assert [(progress.done, progress.total) for progress in counted] == [(done, 3) for done in range(4)]

    await snapshot.remove()
    await imported.remove()

    _, reports = await heard(source.standby())
    assert "writing memory" in {progress.stage for progress in reports}
