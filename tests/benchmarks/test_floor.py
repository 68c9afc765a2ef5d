"""The floor script: it needs nothing of ramet, and says what it measured."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.firecracker import find_firecracker

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "floor.py"


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    # -I -S: without this checkout's packages, as on a machine where ramet isn't installed
    return subprocess.run(
        [sys.executable, "-I", "-S", SCRIPT, *words], capture_output=True, text=True, timeout=120
    )


def test_it_imports_nothing_of_ramet() -> None:
    imports = [
        node
        for node in ast.walk(ast.parse(SCRIPT.read_text()))
        if isinstance(node, ast.ImportFrom | ast.Import)
    ]
    names = {alias.name for node in imports for alias in node.names} | {
        str(node.module) for node in imports if isinstance(node, ast.ImportFrom)
    }
    assert not [name for name in names if name.split(".")[0] == "ramet"]


@pytest.mark.parametrize(
    "words", [["--vmm", "qemu"], ["--memory", "lots"], ["--forks", "0"], ["--vmm", "another"]]
)
def test_wrong_words(words: list[str]) -> None:
    done = run(*words)
    assert (done.returncode, done.stdout) == (2, "")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    done = run("--probe", tmp_path / "absent")
    assert (done.returncode, done.stdout) == (1, "")
    assert "absent" in done.stderr


@pytest.mark.vm
def test_a_few_forks_of_firecracker(probe: Path, tmp_path: Path) -> None:
    program = find_firecracker()
    assert program is not None
    words = ("--forks", "3", "--rounds", "2", "--memory", "64M", "--directory", tmp_path)
    done = run("--program", program, "--probe", probe, *words)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["memory_bytes"] == 64 << 20
    assert found["links"] == 4, "the source and three forks, all alive"
    steps = found["fork_ms"]
    assert set(steps) == {"link", "spawn", "load", "resume", "answer", "total"}
    assert all(0 < step["min"] <= step["median"] <= step["max"] for step in steps.values())
    assert steps["total"]["max"] <= found["wall_ms"]["max"]
    assert list(tmp_path.iterdir()) == []
