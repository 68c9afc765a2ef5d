"""docs/reference/environment.md has a row for each environment variable that the source reads, no other."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "reference" / "environment.md"
# Set by ramet for its VMMs, not read from its own environment.
_SET_FOR_VMMS = "RAMET_VMM"


def _read_by_the_source() -> set[str]:
    found: set[str] = set()
    for path in (ROOT / "src" / "ramet").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            match node:
                case ast.Constant(value=str(text)) if re.fullmatch(r"(RAMET|XDG)_[A-Z_]+", text):
                    found.add(text)
                case ast.Call(
                    func=ast.Attribute(
                        value=ast.Attribute(attr="environ") | ast.Name(id="environment"), attr="get"
                    ),
                    args=[ast.Constant(value=str(text)), *_],
                ):
                    found.add(text)
    return found - {_SET_FOR_VMMS}


def test_the_table_has_what_the_source_reads() -> None:
    rows = [line.split("|")[1] for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    shown = {name for row in rows for name in re.findall(r"`([A-Z_]+)`", row)}
    assert shown == _read_by_the_source()
