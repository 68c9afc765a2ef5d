"""Runs `examples/notebook.ipynb` and writes its outputs into it.

    python -m tools.record_notebook

Jupyter is installed for this, into an environment of its own, which is removed afterwards.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from tools.notebook_cells import cells_of, encoded

ROOT: Final = Path(__file__).parents[1]
NOTEBOOK: Final = ROOT / "examples" / "notebook.ipynb"
PACKAGES: Final = ("ipykernel==7.1.0", "nbclient==0.11.0", "nest-asyncio==1.6.0")
_RUN: Final = """
import json, sys
import nbformat
from nbclient import NotebookClient
notebook = nbformat.reads(sys.stdin.read(), as_version=4)
NotebookClient(notebook, kernel_name="python3", timeout=120, record_timing=False).execute()
print(json.dumps(notebook.cells))
"""


def install_jupyter(directory: Path) -> Path:
    """Make an environment in `directory` with Jupyter and what ramet needs, and return its Python.

    Raises `RuntimeError` with pip's last line if something can't be installed.
    """
    python = directory / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", python.parent.parent], check=True, timeout=120)
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]
    for words in (["--require-hashes", "-r", str(ROOT / "requirements.lock")], PACKAGES):
        installed = subprocess.run(
            [*install, *words], capture_output=True, text=True, timeout=300, check=False
        )
        if installed.returncode:
            raise RuntimeError(f"Jupyter can't be installed: {installed.stderr.splitlines()[-1:]}")
    return python


def jupyter_environment(directory: Path, home: Path) -> dict[str, str]:
    """The environment variables of a Jupyter that `install_jupyter` has put into `directory`."""
    return {
        **os.environ,
        "RAMET_HOME": str(home),
        "PYTHONPATH": str(ROOT / "src"),
        "JUPYTER_PATH": str(directory / "venv" / "share" / "jupyter"),
        "IPYTHONDIR": str(directory / "ipython"),
        "JUPYTER_RUNTIME_DIR": str(directory / "runtime"),
    }


def run_notebook(python: Path, directory: Path, home: Path) -> list[dict[str, Any]]:
    """Run the example's notebook, and return its cells with their outputs."""
    done = subprocess.run(
        [python, "-c", _RUN],
        input=NOTEBOOK.read_text(),
        env=jupyter_environment(directory, home),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    cells: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return cells


def main() -> int:
    """Run the notebook in a home of its own, and write it anew."""
    with tempfile.TemporaryDirectory(prefix="ramet-notebook-") as name:
        directory = Path(name)
        ran = run_notebook(install_jupyter(directory), directory, directory / "home")
    cells = []
    for cell, (kind, text) in zip(ran, cells_of(NOTEBOOK.with_suffix(".py").read_text()), strict=True):
        kept = {key: cell[key] for key in ("execution_count", "outputs") if kind == "code"}
        base = {"cell_type": kind, "id": cell["id"], "metadata": {}}
        cells.append({**base, **kept, "source": text.splitlines(keepends=True)})
    NOTEBOOK.write_text(encoded(cells))
    return 0


if __name__ == "__main__":
    sys.exit(main())
