"""The terms of docs/concepts/glossary.md, and where a page uses one before it links to its definition."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from tests.support.markdown import prose, slug_of

ROOT: Final = Path(__file__).parents[2]
GLOSSARY: Final = ROOT / "docs" / "concepts" / "glossary.md"
# Defined there, and plain English as well: a page may use them without a link.
_EVERYDAY: Final = frozenset(
    {
        *("claim", "clock correction", "detach", "digest", "driver", "family", "handle", "host", "identity"),
        *(
            "image",
            "job",
            "keep",
            "lineage",
            "owner",
            "part",
            "pool",
            "proof",
            "restore",
            "rewind",
            "sandbox",
        ),
        *("source", "state", "watcher", "worker"),
    }
)
_NOT_WORDS: Final = re.compile(r"(`+)(?!`).*?(?<!`)\1(?!`)|<[^>]*>|https?://\S+|for instance")
_LINK: Final = re.compile(r"!?\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^)]*)\)")


class Use(NamedTuple):
    """A term in a line of a page that doesn't link to its definition at or before it."""

    line: int
    start: int
    end: int
    term: str


@cache
def terms() -> dict[str, str]:
    """The defined terms, with their definitions."""
    parts = re.split(r"^## (.*)$", GLOSSARY.read_text(), flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], (body.strip() for body in parts[1::2]), strict=True))


def slug(term: str) -> str:
    """The anchor of a term in the glossary."""
    return slug_of(term)


def missing_links(text: str) -> list[Use]:
    """The first use of each term that has no link to the glossary at or before it, in the page's order."""
    linked: set[str] = set()
    found: dict[str, Use] = {}
    wanted = {
        term: re.compile(rf"(?<![\w-]){re.escape(term)}(?:s|es)?(?![\w-])", re.IGNORECASE)
        for term in sorted(terms(), key=len, reverse=True)
        if term not in _EVERYDAY
    }
    for number, line in prose(text):
        if line.startswith(("#", "```", "~~~", ":::")):
            continue
        # A term inside a longer one, in code or in the text of a link is no use of it.
        plain = _NOT_WORDS.sub(lambda match: " " * len(match[0]), line)
        for link in _LINK.finditer(plain):
            if "glossary.md#" in link[2]:
                anchor = link[2].partition("#")[2]
                linked |= {term for term in wanted if slug(term) == anchor}
            plain = plain.replace(link[0], " " * len(link[0]))
        for term, pattern in wanted.items():
            for use in pattern.finditer(plain):
                plain = plain[: use.start()] + " " * len(use[0]) + plain[use.end() :]
                if term not in linked and term not in found:
                    found[term] = Use(number, use.start(), use.end(), term)
    return sorted(found.values())
