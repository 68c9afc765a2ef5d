"""The subjects of the contract suite: ramet's drivers, each with each kind of guest."""

from __future__ import annotations

from pathlib import Path

import pytest

from ramet.testing.driver_contract.fixtures import frozen, place
from ramet.testing.driver_contract.subject import Subject
from tests import machines

__all__ = ["frozen", "place"]


@pytest.fixture(scope="session", params=machines.EVERY_GUEST, ids=lambda pair: "-".join(pair))
async def subject(request: pytest.FixtureRequest, anyio_backend: str) -> Subject:
    """A driver and a guest that this machine can run."""
    return await machines.require(*request.param)


@pytest.fixture(scope="session")
def contract_directory(homes: Path) -> Path:
    """The place of all directories that tests make."""
    return homes
