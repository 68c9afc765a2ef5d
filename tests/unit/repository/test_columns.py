"""Lines of the documents have at most 100 columns as a reader sees them: a link's target doesn't count."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.markdown import prose

DOCS = Path(__file__).parents[3] / "docs"
_COLUMNS = 100
# Written by generators: a sentence of a docstring is one line there.
_GENERATED = (
    "reference/cli.md",
    "reference/json.md",
    "reference/errors.md",
    "internals/benchmarks.md",
    "tutorial/notebook-sync.md",
)


def test_lines_of_documents_fit() -> None:
    long = [
        f"docs/{path.relative_to(DOCS)}:{number}: {len(seen)} columns"
        for path in sorted(DOCS.rglob("*.md"))
        if str(path.relative_to(DOCS)) not in _GENERATED
        for number, line in prose(path.read_text())
        if len(seen := re.sub(r"\]\([^)]*\)", "]", line)) > _COLUMNS
        and not line.startswith(("|", "#", "![", "- [`tests/", "    "))
        and " " in seen.strip("- ")
    ]
    assert not long, "\n".join(long)
