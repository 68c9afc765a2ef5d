"""`examples/notebook.ipynb` runs in Jupyter and prints what it has recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tools.examples import normalised
from tools.notebook_cells import cells_of, output_of, renewed
from tools.record_notebook import NOTEBOOK, install_jupyter, run_notebook


@pytest.mark.vm
@pytest.mark.deep
@pytest.mark.timeout(900)
def test_the_notebook(home: Path, tmp_path: Path) -> None:
    try:
        python = install_jupyter(tmp_path)
    except RuntimeError as error:
        pytest.skip(str(error))
    ran = run_notebook(python, tmp_path, home)
    recorded = json.loads(NOTEBOOK.read_text())["cells"]
    code = [cell["cell_type"] == "code" for cell in recorded]
    for cell, before, is_code in zip(ran, recorded, code, strict=True):
        if is_code:
            assert normalised(output_of(cell)) == normalised(output_of(before)), "".join(before["source"])


def test_every_cell_was_run() -> None:
    """A cell that was changed after the notebook was recorded has lost its output."""
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    counts = [cell["execution_count"] for cell in cells if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1)), "run `python -m tools.record_notebook`"


def test_a_changed_cell_loses_its_output() -> None:
    source = "# %% [markdown]\n# # Title\n\n# %%\nprint(1)\n"
    assert cells_of(source) == [("markdown", "# Title"), ("code", "print(1)")]
    cell = {"cell_type": "code", "id": "cell-1", "execution_count": 1, "source": "print(1)"}
    cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "1\n"}]
    recorded = json.dumps({"cells": [cell]})
    kept = json.loads(renewed(recorded, source))["cells"][1]
    assert output_of(kept) == "1\n"
    changed = json.loads(renewed(recorded, source.replace("print(1)", "print(2)")))["cells"][1]
    assert (output_of(changed), changed["execution_count"]) == ("", None)
