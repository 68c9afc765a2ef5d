"""A notebook as text with `# %%` between its cells, as `.ipynb`, and as Markdown.

The text is what Jupytext calls the percent format. The `.ipynb` is nbformat 4.5
(https://nbformat.readthedocs.io/en/latest/format_description.html).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final

_MARK: Final = re.compile(r"^# %%( \[markdown\])?$", re.MULTILINE)
_METADATA: Final = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def cells_of(source: str) -> list[tuple[str, str]]:
    """The kind (`code` or `markdown`) and the text of each cell of a program with `# %%` marks."""
    parts = _MARK.split(source)[1:]
    kinds = ("markdown" if mark else "code" for mark in parts[::2])
    return [
        (kind, re.sub(r"^# ?", "", text.strip(), flags=re.MULTILINE) if kind == "markdown" else text.strip())
        for kind, text in zip(kinds, parts[1::2], strict=True)
    ]


def renewed(recorded: str | None, source: str) -> str:
    """The `.ipynb` of a program. Code cells that haven't changed keep the output that is recorded."""
    before = json.loads(recorded)["cells"] if recorded else []
    outputs = {_text(cell): cell for cell in before if cell["cell_type"] == "code"}
    cells = []
    for index, (kind, text) in enumerate(cells_of(source)):
        cell: dict[str, Any] = {"cell_type": kind, "id": f"cell-{index}", "metadata": {}}
        if kind == "code":
            known = outputs.get(text, {})
            cell["execution_count"] = known.get("execution_count")
            cell["outputs"] = known.get("outputs", [])
        cells.append({**cell, "source": text.splitlines(keepends=True)})
    return encoded(cells)


def encoded(cells: list[dict[str, Any]]) -> str:
    """Cells as an `.ipynb`."""
    document = {"cells": cells, "metadata": _METADATA, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def as_markdown(recorded: str) -> str:
    """The cells of an `.ipynb` with their outputs, without its heading: the page has one."""
    return "\n".join(_markdown(json.loads(recorded)["cells"]))


def _markdown(cells: list[dict[str, Any]]) -> Iterator[str]:
    for cell in cells:
        text = _text(cell)
        if cell["cell_type"] == "markdown":
            yield re.sub(r"\A# .*\n+", "", text) + "\n"
            continue
        yield f"```python\n{text}\n```\n"
        if output := output_of(cell):
            yield f"```text\n{output}```\n"


def output_of(cell: dict[str, Any]) -> str:
    """What a code cell printed, and the value that it ended with."""
    text = ""
    for output in cell["outputs"]:
        lines = output["text"] if "text" in output else output["data"]["text/plain"]
        text += "".join(lines)
    return text if not text or text.endswith("\n") else text + "\n"


def _text(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])
