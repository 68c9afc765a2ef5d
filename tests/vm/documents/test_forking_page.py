"""docs/concepts/identity.md: its example has the shown output in real forks, and its remedies work."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[3] / "docs" / "concepts" / "identity.md").read_text()
FUNCTION, EXAMPLE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.vm
def test_the_example(home: Path) -> None:
    """Without the cure all forks draw one number; with it, each its own."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", EXAMPLE],
        env={**os.environ, "RAMET_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    drawn = {name: numbers for name, *numbers in map(str.split, done.stdout.splitlines())}
    assert drawn.keys() == {"naive", "cured"}
    assert len(drawn["naive"]) == len(drawn["cured"]) == 3
    assert len(set(drawn["naive"])) == 1
    assert len(set(drawn["cured"])) > 1  # of three numbers of 15 bits, two may be equal


def test_the_function(tmp_path: Path) -> None:
    """It seeds when the generation has changed, and only then."""
    generation = tmp_path / "generation"
    names: dict[str, object] = {"random": random}
    exec(FUNCTION.replace("/run/ramet/generation", str(generation)), names)
    reseed = names["reseed_after_a_fork"]
    assert callable(reseed)
    before = random.getstate()
    try:
        generation.write_text("1\n")
        random.seed(1)
        reseed()
        first = random.getstate()
        reseed()
        assert random.getstate() == first
        generation.write_text("2\n")
        reseed()
        assert random.getstate() != first
    finally:
        random.setstate(before)
