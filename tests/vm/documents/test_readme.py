"""README: short, its examples are those in `examples/`, and its first commands are those of CI."""

from __future__ import annotations

import re
from typing import Final

import pytest
from tools.examples import ROOT, recorded

README: Final = (ROOT / "README.md").read_text()
LINES: Final = README.splitlines()


def test_it_is_short() -> None:
    assert len(LINES) <= 80
    assert [line for line in LINES if len(line) > 100] == []


def test_its_first_commands_are_demo_and_test() -> None:
    commands = re.findall(r"^make \S+", README, re.MULTILINE)
    assert commands[:2] == ["make demo", "make test"]


@pytest.mark.parametrize("fence", ["python", "text"])
def test_each_example_is_a_file_that_is_run(fence: str) -> None:
    """`test_examples.py` runs them; `tools/generate.py` copies them."""
    blocks = re.findall(rf"(^<!-- file: .* -->\n)?^```{fence}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    example = ROOT / "examples" / "warm_python.py"
    expected = example if fence == "python" else recorded("warm_python")
    assert [text for _, text in blocks] == [expected.read_text()]
    assert all(marker for marker, _ in blocks)
