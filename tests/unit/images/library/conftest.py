from __future__ import annotations

from pathlib import Path

import pytest

from ramet.images.erofs import blob
from ramet.images.library.library import Library
from tests.unit.images.library.libraries import SHARED_FROM, library_in


@pytest.fixture(autouse=True)
def _small_layers_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blob, "SHARED_FROM_BYTES", SHARED_FROM)


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return library_in(tmp_path)
