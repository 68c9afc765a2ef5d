"""The site builds: `make docs`, its doctests, and the links and files of the built pages."""

from __future__ import annotations

import importlib.util
import subprocess

import pytest

from tests.support.copied_packages import ROOT


@pytest.mark.deep
@pytest.mark.timeout(300)
def test_make_docs() -> None:
    if importlib.util.find_spec("sphinx") is None:
        pytest.skip("Sphinx isn't installed: `make docs` installs it")
    done = subprocess.run(
        ["make", "--no-print-directory", "docs"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith(" 0 faults")
