"""Keeps the examples in README and the pages of `docs/` equal to the files in `examples/`.

`<!-- file: examples/NAME -->` stands above a fenced block, which becomes that file. Between
`<!-- cells: examples/NAME.ipynb -->` and `<!-- end of cells -->` stand the cells of that notebook with their
outputs. `examples/notebook.ipynb` has the cells of `examples/notebook.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import notebook_cells

ROOT: Final = Path(__file__).parents[1]
_FILE: Final = re.compile(r"^(<!-- file: (examples/\S+) -->\n)```\w*\n.*?^```$", re.DOTALL | re.MULTILINE)
_CELLS: Final = re.compile(
    r"^(<!-- cells: (examples/\S+) -->\n).*?^(<!-- end of cells -->)$", re.DOTALL | re.MULTILINE
)
_LANGUAGES: Final = {".py": "python", ".out": "text", ".sh": "sh"}
NOTEBOOK: Final = "examples/notebook.ipynb"


def _filled(page: str) -> str:
    """A page with its marked blocks made anew."""
    return _CELLS.sub(_cells, _FILE.sub(_file, page))


def _file(match: re.Match[str]) -> str:
    source = ROOT / match[2]
    return f"{match[1]}```{_LANGUAGES[source.suffix]}\n{source.read_text()}```"


def _cells(match: re.Match[str]) -> str:
    text = notebook_cells.as_markdown(_notebook(match[2]))
    return f"{match[1]}\n{text}\n{match[3]}"


def _page(path: Path) -> str:
    return _filled(path.read_text())


def _notebook(name: str) -> str:
    """A recorded notebook with the cells of its source. Outputs of cells that have changed are dropped."""
    recorded = ROOT / name
    source = recorded.with_suffix(".py").read_text()
    return notebook_cells.renewed(recorded.read_text() if recorded.exists() else None, source)


def _marked() -> list[Path]:
    candidates = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [
        path for path in candidates if "<!-- file: " in (text := path.read_text()) or "<!-- cells: " in text
    ]


TARGETS: Final[dict[str, Callable[[], str]]] = {
    NOTEBOOK: partial(_notebook, NOTEBOOK),
    **{str(path.relative_to(ROOT)): partial(_page, path) for path in _marked()},
}
