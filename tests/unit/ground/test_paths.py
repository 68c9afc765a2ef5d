"""The directories of a home."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from ramet.paths import Home


@pytest.mark.proves("I9")
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_home_is_closed_to_others(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        Home(tmp_path / "home").make()
    finally:
        os.umask(before)
    made = [tmp_path / "home", *(tmp_path / "home").rglob("*")]
    assert len(made) > 3
    assert {stat.S_IMODE(path.stat().st_mode) for path in made} == {0o700}
