from __future__ import annotations

from pathlib import Path

import pytest

from ramet.images.library.library import Library
from tests.unit.images.library.libraries import library_in


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return library_in(tmp_path / "home")
