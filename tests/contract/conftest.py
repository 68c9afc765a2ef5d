"""The subjects of the contract suite: ramet's drivers, each with each kind of guest."""

from __future__ import annotations

from pathlib import Path

import pytest

from ramet.drivers.firecracker.driver import Firecracker
from ramet.drivers.interface import Driver
from ramet.drivers.qemu.driver import Qemu
from ramet.testing.driver_contract.fixtures import frozen, place, subject_or_skip
from ramet.testing.driver_contract.subject import Subject

__all__ = ["frozen", "place"]

DRIVERS: dict[str, type[Qemu] | type[Firecracker]] = {"qemu": Qemu, "firecracker": Firecracker}
GUESTS = [("qemu", "builtin"), ("firecracker", "builtin"), ("firecracker", "probe")]


@pytest.fixture(scope="session", params=GUESTS, ids=lambda pair: "-".join(pair))
async def subject(request: pytest.FixtureRequest, anyio_backend: str) -> Subject:
    """A driver and a guest that this machine can run."""
    driver_name, image_name = request.param
    driver: Driver = DRIVERS[driver_name]()
    return await subject_or_skip(driver, image_name)


@pytest.fixture(scope="session")
def contract_directory(homes: Path) -> Path:
    """The place of all directories that tests make."""
    return homes
