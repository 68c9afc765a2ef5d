"""The programs in `examples/` print what is recorded beside them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tools import examples
from tools.examples import normalised


@pytest.mark.core
@pytest.mark.vm
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", [name for name in examples.PROGRAMS if name != "warm_python"])
def test_an_example(name: str, home: Path) -> None:
    """`test_warm_python.py` has the one that wants a registry."""
    output = examples.run_program(name, home)
    if " skipped" in output:
        pytest.skip(output)
    assert normalised(output) == normalised(examples.recorded(name).read_text())


def test_every_example_has_its_output_recorded() -> None:
    programs = {path.stem for path in examples.EXAMPLES.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert programs - {"__pycache__", "notebook"} == set(examples.PROGRAMS)
    assert all(examples.recorded(name).exists() for name in examples.PROGRAMS)


def test_what_varies_is_taken_out() -> None:
    row = "try-1  8a032e6f9634  try-1     shared      4  444.0 KiB  25.6 MiB  90 ms  328 ms\n"
    assert normalised(row) == "try-1  <1>  try-1  shared  4  # KiB  # MiB  # ms  # ms\n"
    assert normalised("inode 4711, data 12345678\ninode 4711\n") == "inode <1>, data <2>\ninode <1>\n"
    assert normalised("inode 1\ninode 1\n") != normalised("inode 1\ninode 2\n")
    assert normalised("scores: 11 20\n") == "scores: 11 20\n"
