"""The pages of docs/tutorial: each command prints what the page shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import assert_nothing_left
from tests.support.transcripts import Page, fits

TUTORIAL = Path(__file__).parents[3] / "docs" / "tutorial"
PAGES = [path.name for path in sorted(TUTORIAL.glob("*.md")) if "```console\n" in path.read_text()]


def test_there_are_pages() -> None:
    assert PAGES == ["branch-and-keep.md", "first-fork.md"]


@pytest.mark.core
@pytest.mark.vm
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", PAGES)
def test_its_commands_print_what_it_shows(name: str, home: Path, tmp_path: Path) -> None:
    page = Page((TUTORIAL / name).read_text(), tmp_path, home)
    for command in page.commands:
        printed = page.run(command)
        assert fits(command.shown, printed), f"docs/tutorial/{name}: $ {command.words}\n{printed}"
    assert_nothing_left(home)
