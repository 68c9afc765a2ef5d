"""What is generated is up to date."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import ramet

ROOT = Path(__file__).parents[3]


def test_generated_files_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "generate.py"), "--check"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_every_public_name_can_be_had() -> None:
    for name in ramet.__all__:
        assert getattr(ramet, name) is not None
    assert set(ramet.__all__) <= set(dir(ramet))


def test_importing_ramet_loads_no_engine() -> None:
    script = "import sys, ramet; print([name for name in sys.modules if name.startswith('ramet.')])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60, check=True)
    assert done.stdout == b"['ramet.version']\n"
