"""The subjects of the contract suite, and the ladder that each climbs once: booted, frozen."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from ramet import config
from ramet.drivers.firecracker.driver import Firecracker
from ramet.drivers.interface import Driver
from ramet.drivers.qemu.driver import Qemu
from ramet.engine.drivers import kvm_runs
from ramet.errors import RametError
from ramet.guest.agent_binary import agent_path, probe_path
from ramet.images.resolve import resolve_image
from ramet.system.kvm import kvm_verdict
from tests.contract.subject import Frozen, Subject, booted, introduce

DRIVERS: dict[str, type[Qemu] | type[Firecracker]] = {"qemu": Qemu, "firecracker": Firecracker}
GUESTS = [("qemu", "builtin"), ("firecracker", "builtin"), ("firecracker", "probe")]


@pytest.fixture(scope="session", params=GUESTS, ids=lambda pair: "-".join(pair))
async def subject(request: pytest.FixtureRequest, anyio_backend: str) -> Subject:
    """A driver and a guest that this machine can run."""
    driver_name, image_name = request.param
    driver: Driver = DRIVERS[driver_name]()
    verdict = await kvm_verdict(config.cache_directory())
    try:
        version = await driver.version()
        image = resolve_image(image_name, agent_path, probe_path)
    except RametError as error:
        pytest.skip(error.message)
    if kvm_runs(verdict, image.guest):
        accelerator = "kvm"
    elif driver_name == "qemu":
        accelerator = "tcg"
    else:
        pytest.skip(f"firecracker needs KVM, which runs no {image.guest} guests here: {verdict.detail}")
    made = Subject(driver, image, accelerator)
    made.version = version
    return made


@pytest.fixture
def place(homes: Path) -> Path:
    """An empty directory for the VMs of one test."""
    return Path(tempfile.mkdtemp(dir=homes, prefix="contract-"))


@pytest.fixture(scope="session")
async def frozen(subject: Subject, homes: Path, anyio_backend: str) -> Frozen:
    """A frozen VM whose guest remembers the number 1, in memory and on its disk."""
    directory = Path(tempfile.mkdtemp(dir=homes, prefix="frozen-")) / "source"
    async with booted(subject, directory) as vm:
        async with subject.agent(vm) as agent:
            await introduce(agent, "source")
            await subject.write(agent, 1)
        return await subject.freeze(vm)
