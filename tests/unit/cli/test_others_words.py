"""Verbs that other programs have: ramet names its own, and not one that removes something else."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("word", "verb"), [("rmi", "image rm"), ("images", "image ls"), ("push", "image push")]
)
def test_dockers_verbs(word: str, verb: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ramet", word, "x"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr == f"ramet: ramet has no command {word!r}\nhint: `ramet {verb} --help`\n"
