"""The guests that this machine can run, or a skip with the reason."""

from __future__ import annotations

import pytest

import ramet
from ramet import config
from ramet.drivers.firecracker import Firecracker
from ramet.drivers.qemu import Qemu
from ramet.engine.choice import kvm_runs
from ramet.errors import RametError
from ramet.guest.agent_binary import agent_path, probe_path
from ramet.host.kvm import kvm_verdict
from ramet.images.resolve import resolve_image
from tests.plane.guest import Guest


async def require(driver: str, image: str) -> Guest:
    """That guest, or a skip."""
    try:
        await (Qemu() if driver == "qemu" else Firecracker()).version()
        resolve_image(image, agent_path, probe_path)
    except RametError as error:
        pytest.skip(error.message)
    verdict = await kvm_verdict(config.cache_directory())
    if driver == "firecracker" and not kvm_runs(verdict, "bare-metal"):
        pytest.skip(f"KVM runs no bare-metal guests here: {verdict.detail}")
    return Guest(driver, image)


@pytest.fixture(params=[("qemu", "builtin"), ("firecracker", "probe")], ids=lambda pair: pair[0])
async def guest(request: pytest.FixtureRequest) -> Guest:
    """Linux on QEMU, and the probe on Firecracker."""
    return await require(*request.param)


@pytest.fixture
async def linux() -> Guest:
    """Linux on QEMU."""
    return await require("qemu", "builtin")


@pytest.fixture
async def probe() -> Guest:
    """The probe on Firecracker."""
    return await require("firecracker", "probe")


@pytest.fixture
async def source(guest: Guest, host: ramet.Host) -> ramet.VM:
    """A fork of a template: a running guest whose memory has a base. Of which template nothing is left."""
    base = await guest.boot(host)
    await base.template()
    (fork,) = await base.fork(1)
    await base.remove()
    return fork
