"""The pages of docs/how-to: each command prints what the page shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import assert_nothing_left
from tests.support.transcripts import Page, commands, fits

DOCS = Path(__file__).parents[3] / "docs"
PAGES = sorted(
    path.relative_to(DOCS) for path in (DOCS / "how-to").glob("*.md") if "```console\n" in path.read_text()
)
# One waits for a pool to fill, one runs the whole demo, one boots several container images.
_LONG = ("warm-pool", "ci-without-kvm", "container-images")


def test_there_are_pages() -> None:
    assert len(PAGES) >= 6


@pytest.mark.vm
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.deep] if page.stem in _LONG else [], id=page.stem)
        for page in PAGES
    ],
)
def test_its_commands_print_what_it_shows(
    page: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The pages show QEMU's words; another driver is another table.
    monkeypatch.setenv("RAMET_DRIVER", "qemu")
    directory = tmp_path / "reader"
    directory.mkdir()
    example = Page((DOCS / page).read_text(), directory, home)
    try:
        for command in example.commands:
            printed = example.run(command)
            assert fits(command.shown, printed), f"docs/{page}: $ {command.words}\n{printed}"
    finally:
        example.close()
    assert_nothing_left(home)


def test_a_transcript_differs_in_more_than_numbers() -> None:
    shown = "NAME  ID            AGE\nbox   b77710887992  8s\n...\nlast\n"
    assert fits(shown, "NAME    ID  AGE\nbox  0123456789ab  12s\nanything\nat all\nlast\n")
    assert not fits(shown, "NAME    ID  AGE\nfox  0123456789ab  12s\nlast\n")
    assert not fits("", "an error\n")
    assert [*commands("$ a \\\n> b\nout\n$ c\n")] == [("a \\\nb", "out"), ("c", "")]
