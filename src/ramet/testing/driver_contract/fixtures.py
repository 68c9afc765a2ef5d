"""The fixtures of the suite: import them into a `conftest.py`, beside a fixture `subject`.

The ladder that each subject climbs once is *prepared → booted → frozen*; a test restores from there.
"""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from ramet import config
from ramet.drivers.interface import Ability, Driver
from ramet.engine.drivers import kvm_runs
from ramet.errors import RametError
from ramet.guest.agent_binary import agent_path, probe_path
from ramet.images.resolve import resolve_image
from ramet.system.kvm import kvm_verdict
from ramet.testing.driver_contract.subject import Frozen, Subject, booted, introduce
from ramet.testing.leftovers import living_in


async def subject_or_skip(driver: Driver, image_name: str) -> Subject:
    """Return `driver` with a guest of the image `image_name`: "builtin" is Linux, "probe" is bare metal.

    KVM runs the guest where it can; else the driver emulates, if it has that ability. The test is skipped
    with a reason where the VMM, the image or an accelerator is missing.
    """
    verdict = await kvm_verdict(config.cache_directory())
    try:
        version = await driver.version()
        image = resolve_image(image_name, agent_path, probe_path)
    except RametError as error:
        pytest.skip(error.message)
    if kvm_runs(verdict, image.guest):
        accelerator = "kvm"
    elif Ability.EMULATES in driver.abilities:
        accelerator = "tcg"
    else:
        pytest.skip(f"{driver.name} needs KVM, which runs no {image.guest} guests here: {verdict.detail}")
    return Subject(driver, image, accelerator, version=version)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Return the event loop of the suite: ramet runs on asyncio alone."""
    return "asyncio"


@pytest.fixture(scope="session")
def contract_directory() -> Iterator[Path]:
    """Make a directory for the VMs of the suite, on the file system of the image cache: kernels are linked.

    Processes of a failed test that still run in it are killed at the end.
    """
    cache = config.cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="contract-", dir=cache) as directory:
        yield Path(directory)
        for pid in living_in(Path(directory)):
            with suppress(ProcessLookupError):  # it has ended meanwhile, as it should
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def place(contract_directory: Path) -> Path:
    """Make an empty directory for the VMs of one test."""
    return Path(tempfile.mkdtemp(dir=contract_directory, prefix="contract-"))


@pytest.fixture(scope="session")
async def frozen(subject: Subject, contract_directory: Path, anyio_backend: str) -> Frozen:
    """Freeze a VM whose guest remembers the number 1, in memory and on its disk."""
    directory = Path(tempfile.mkdtemp(dir=contract_directory, prefix="frozen-")) / "source"
    async with booted(subject, directory) as vm:
        async with subject.agent(vm) as agent:
            await introduce(agent, "source")
            await subject.write(agent, 1)
        return await subject.freeze(vm)
