"""The page about the contract suite: another project's tests, written as the page says, run on a real VMM."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.copied_packages import ROOT

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]

PAGE = ROOT / "docs" / "how-to" / "write-a-driver.md"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with the files of the page, outside of ramet's tree."""
    conftest, tests = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "conftest.py").write_text(conftest)
    (tmp_path / "test_contract.py").write_text(tests)
    return tmp_path


def run(project: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", project, "-q", *words, project],
        cwd=project,
        env={name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def names(listing: str) -> set[str]:
    return {line.partition("::")[2].partition("[")[0] for line in listing.splitlines() if "::" in line}


def test_the_pages_example_has_every_test(project: Path) -> None:
    """None is left out by the imports that the page shows."""
    suite = ROOT / "src" / "ramet" / "testing" / "driver_contract"
    sources = [path.read_text() for path in suite.glob("*.py")]
    defined = {name for text in sources for name in re.findall(r"^async def (test_\w+)", text, re.MULTILINE)}
    assert names(run(project, "--collect-only")) == defined
    assert len(defined) > 30


def test_the_pages_example_runs(project: Path) -> None:
    done = run(project, "-k", "missing_program or another_process_adopts or who_paused_it_is_killed")
    assert "3 passed" in done or "3 skipped" in done, done
