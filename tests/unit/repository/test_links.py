"""Each relative link of a Markdown file leads to a file of the project and, with an anchor, to a heading."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.markdown import anchors, broken_links, links

ROOT = Path(__file__).parents[3]
# A page is made of it: its links are right where that page is.
_FRAGMENT = ROOT / "benchmarks" / "findings.md"
_PLACES = ("docs", "src", "tests", "benchmarks", "tools", "examples")


def documents() -> list[Path]:
    """The Markdown files of the project; what is built or installed lies elsewhere."""
    found = [file for place in _PLACES for file in sorted((ROOT / place).rglob("*.md"))]
    return [file for file in (*sorted(ROOT.glob("*.md")), *found) if file != _FRAGMENT]


def test_every_relative_link_leads_somewhere() -> None:
    broken = broken_links(documents(), ROOT)
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("[a](missing.md)", "page.md:3: missing.md: no such file"),
        ("![a](missing.svg)", "page.md:3: missing.svg: no such file"),
        ("[a]: missing.md", "page.md:3: missing.md: no such file"),
        ("[a](#nowhere)", "page.md:3: #nowhere: no such heading"),
        ("[a](other.md#nowhere)", "page.md:3: other.md#nowhere: no such heading"),
        ("[`a`](../outside.md)", "page.md:3: ../outside.md: outside the project"),
    ],
)
def test_a_broken_link_is_named_with_its_line(tmp_path: Path, line: str, reason: str) -> None:
    root = tmp_path / "project"
    root.mkdir()
    (tmp_path / "outside.md").touch()
    (root / "other.md").write_text("# Other\n")
    page = root / "page.md"
    page.write_text(f"# Page\n\n{line}\n")
    assert broken_links([page], root) == [reason]


def test_code_is_no_link_and_anchors_are_those_of_github() -> None:
    text = (
        "# A `b` & c: d\n```\n[x](nowhere)\n# no heading\n```\n`[x](nowhere)` [y](z_(1).md)\n"
        "## Twice\n## Twice\n"
    )
    assert [target for _, target in links(text)] == ["z_(1).md"]
    assert anchors(text) == {"a-b--c-d", "twice", "twice-1"}


def test_what_follows_a_directive_is_prose_again() -> None:
    text = "```{toctree}\n[no](link)\n```\n[a](b)\n````{note}\n[c](d)\n```\n[no](link)\n```\n````\n[e](f)\n"
    assert list(links(text)) == [(4, "b"), (6, "d"), (11, "f")]
