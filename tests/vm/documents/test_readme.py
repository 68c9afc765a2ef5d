"""The README's examples, run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import assert_nothing_left

README = (Path(__file__).parents[3] / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SHELL = {
    title: re.search(rf"## {title}\n.*?```\n(.*?)```", README, re.DOTALL)
    for title in ("From the shell", "Snapshots, standby, branches")
}


def test_there_are_examples() -> None:
    assert len(PYTHON) == 2
    assert all(SHELL.values())


@pytest.mark.core
@pytest.mark.vm
@pytest.mark.parametrize("example", PYTHON, ids=["async", "sync"])
def test_a_python_example(example: str, home: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", example],
        env={**os.environ, "RAMET_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert (done.returncode, done.stderr) == (0, "")
    said = done.stdout.split()
    if "asyncio" in example or "anyio" in example:
        assert said[0] == said[1], "the fork that was kept says its own name"
    else:
        assert said[1::2] == ["shared"] * 3


@pytest.mark.core
@pytest.mark.vm
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("title", "said"), [("From the shell", ["hot"]), ("Snapshots, standby, branches", ["plan-a", "plan-a"])]
)
def test_a_shell_example(title: str, said: list[str], home: Path) -> None:
    found = SHELL[title]
    assert found is not None
    script = "set -eu\n" + found[1]
    environment = {**os.environ, "RAMET_HOME": str(home)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run(["sh", "-c", script], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert [word for word in done.stdout.split() if word in said] == said
    assert_nothing_left(home)
