"""The transcripts of pages print what the pages show."""

from __future__ import annotations

from pathlib import Path

import pytest
from tools import examples
from tools.examples import ROOT, normalised

from tests.conftest import assert_nothing_left

PAGES = [str(page.relative_to(ROOT)) for page in examples.pages()]


@pytest.mark.core
@pytest.mark.vm
@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", PAGES)
def test_a_transcript(page: str, home: Path) -> None:
    shown = examples.steps((ROOT / page).read_text())
    outputs = examples.run_steps([step.command for step in shown], home)
    printed = [step._replace(output=output) for step, output in zip(shown, outputs, strict=True)]
    assert normalised(_as_typed(printed)) == normalised(_as_typed(shown))
    assert_nothing_left(home)


def _as_typed(steps: list[examples.Step]) -> str:
    return "".join(f"$ {step.command}\n{step.output}" for step in steps)


def test_the_tutorial_is_run() -> None:
    assert {"docs/tutorial/first-fork.md", "docs/tutorial/branch-and-keep.md"} <= set(PAGES)
