"""Documents show what users get: with boot snapshots."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _with_boot_snapshots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAMET_BOOT_SNAPSHOTS", raising=False)
