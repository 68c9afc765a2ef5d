"""The glossary defines ramet's terms; pages for new readers link to the definition of each term they use."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.glossary import ROOT, missing_links, terms

DOCS = ROOT / "docs"
PAGES = sorted(
    path.relative_to(DOCS)
    for path in (
        DOCS / "index.md",
        DOCS / "install.md",
        *(DOCS / "tutorial").glob("*.md"),
        *(DOCS / "how-to").glob("*.md"),
        *(DOCS / "concepts").glob("*.md"),
    )
    # One is made from a notebook, in which a link into the site leads nowhere; the pages before it have the
    # links. The others are the definitions, and a list of pages.
    if path.name not in {"notebook-sync.md", "glossary.md"} and path != DOCS / "concepts" / "index.md"
)


def test_the_terms_of_the_field_are_defined() -> None:
    assert terms().keys() >= {
        *("branch", "capture", "delta", "fork", "generation", "home", "identity", "instance", "invariant"),
        *(
            "manifest",
            "mem-file",
            "microVM",
            "overlay",
            "probe",
            "receipt",
            "snapshot",
            "standby",
            "template",
        ),
        *("vmstate", "VMM", "warm VMM", "pool", "proof", "part", "owner", "rewind", "restore", "keep"),
    }


def test_each_term_has_a_definition_and_its_place() -> None:
    assert not [term for term, definition in terms().items() if len(definition) < 20]
    assert list(terms()) == sorted(terms(), key=str.lower)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_a_term_is_linked_to_its_definition_where_it_is_first_used(page: Path) -> None:
    missing = missing_links((DOCS / page).read_text())
    assert not missing, "\n".join(
        f"docs/{page}:{use.line}: link the first {use.term!r} to concepts/glossary.md" for use in missing
    )


def test_what_is_a_use_of_a_term() -> None:
    text = "# Forks\n`fork` and\n```\na snapshot\n```\na warm VMM, [deltas](../glossary.md#delta), a delta"
    assert [(use.line, use.term) for use in missing_links(text)] == [(6, "warm VMM")]
    uses = missing_links("A VMM, for instance, of Forks and [a template](x.md)")
    assert [use.term for use in uses] == ["VMM", "fork"]
