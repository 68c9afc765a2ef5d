"""docs/internals/benchmarks.md is made of its data and the findings; bars show the measured values only."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from benchmarks.bars import judge
from benchmarks.document import Document, Machine, Versions, read, write
from benchmarks.figures import Figure, Ratio, compare
from benchmarks.page import FINDINGS, render
from benchmarks.run import Outcome

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "internals" / "benchmarks" / "results.json"


def document(*outcomes: Outcome) -> Document:
    return Document(
        machine=Machine(
            processor="some",
            processors=2,
            memory_bytes=1 << 34,
            kernel="6.1",
            filesystem="ext4",
            kvm="runs_linux",
        ),
        versions=Versions(ramet="0", commit="0", python="3", qemu="7", firecracker="1"),
        date="2026-01-01T00:00:00+00:00",
        command="python -m benchmarks",
        quick=False,
        load_before=0.0,
        outcomes=list(outcomes),
    )


def latency(above: list[float], below: list[float]) -> Outcome:
    figures = [
        Figure(what="fork to ready", who=f"qemu, {who}", unit="ms", values=values)
        for who, values in (("ramet", above), ("floor", below))
    ]
    ratio = compare("qemu: ramet over floor", *figures)
    return Outcome(name="latency", seconds=1, figures=figures, ratios=[ratio], skipped=[])


@pytest.mark.skipif(not RESULTS.exists(), reason="no full run has been committed")
def test_the_page_is_up_to_date() -> None:
    page = (ROOT / "docs" / "internals" / "benchmarks.md").read_text()
    made = render(read(RESULTS), FINDINGS.read_text(), directory="benchmarks")
    assert page == made, "run `python -m benchmarks --page`"
    for name in re.findall(r"\]\((benchmarks/[^)]+)\)", page):
        assert (ROOT / "docs" / "internals" / name).is_file()


def test_a_bar_is_met_or_not_or_was_not_measured() -> None:
    def first(found: Document) -> dict[str, bool | None]:
        return {bar.what: bar.met for bar in judge(found)}

    name = "QEMU: fork to ready over the floor, no pool"
    assert first(document())[name] is None
    assert set(first(document()).values()) == {None}
    assert first(document(latency([12, 12, 12], [10, 10, 10])))[name] is True
    assert first(document(latency([13, 13, 13], [10, 10, 10])))[name] is False


def test_the_page_says_what_failed_and_was_skipped() -> None:
    outcome = latency([12.0, 12.5], [10.0, 10.5])
    outcome.skipped.append("qemu, warm pool: not here")
    page = render(document(outcome), "## Findings", directory="data")
    assert "Not measured: qemu, warm pool: not here" in page
    assert "| qemu: ramet over floor | 1.2 |" in page
    assert "## Findings" in page


def test_a_document_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = document(
        latency([12.0, 12.5], [10.0, 10.5]),
        Outcome(name="depth", seconds=0, figures=[], ratios=[], skipped=["x"]),
    )
    write(tmp_path / "results.json", made)
    assert read(tmp_path / "results.json") == made
    assert isinstance(read(tmp_path / "results.json").outcomes[0].ratios[0], Ratio)
