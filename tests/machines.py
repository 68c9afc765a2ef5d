"""The drivers and guests that tests run on, and the reason why one can't run on this machine.

The reason is the one that `ramet doctor` gives. Tests that need a VM ask here, so that a driver or a kind of
guest is added in one place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import pytest

from ramet import config
from ramet.drivers.cloud_hypervisor.driver import CloudHypervisor
from ramet.drivers.firecracker.driver import Firecracker
from ramet.drivers.interface import Driver
from ramet.drivers.qemu.driver import Qemu
from ramet.engine.drivers import kvm_runs
from ramet.model.record import Guest
from ramet.system.kvm import kvm_verdict
from ramet.testing.driver_contract.fixtures import subject_or_skip
from ramet.testing.driver_contract.subject import Subject

DRIVERS: Final[dict[str, Callable[[], Driver]]] = {
    "qemu": Qemu,
    "firecracker": Firecracker,
    "cloud-hypervisor": CloudHypervisor,
}

EVERY_GUEST: Final = (
    ("qemu", "builtin"),
    ("firecracker", "builtin"),
    ("firecracker", "probe"),
    ("cloud-hypervisor", "builtin"),
)
"""Each driver with each image that it boots: what a driver promises is tested on all of them."""

ONE_GUEST_PER_DRIVER: Final = (("qemu", "builtin"), ("firecracker", "probe"))
"""Each driver with the image that runs on most machines: Linux emulated, and bare metal on any KVM."""


async def require(driver: str, image: str) -> Subject:
    """Return that driver with a guest of that image. Skips with the reason where it can't run here."""
    return await subject_or_skip(DRIVERS[driver](), image)


async def require_kvm(guest: Guest, *, hint: str = "") -> None:
    """Skip, with the reason and `hint`, where KVM doesn't run such guests."""
    verdict = await kvm_verdict(config.cache_directory())
    if not kvm_runs(verdict, guest):
        pytest.skip(f"KVM runs no {guest} guests here: {verdict.detail}{hint}")
