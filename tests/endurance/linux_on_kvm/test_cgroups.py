"""Control groups of version 2: the emulated host has nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.platform.environments.conftest import directory, exported
from tests.platform.environments.matrix import VERSION_2, Environment
from tests.platform.environments.test_matrix import try_row

__all__ = ["directory", "exported"]

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]


@pytest.mark.parametrize("row", VERSION_2, ids=lambda row: row.name)
def test_the_job(row: Environment, directory: Path, exported: Path) -> None:
    try_row(row, directory, exported)
