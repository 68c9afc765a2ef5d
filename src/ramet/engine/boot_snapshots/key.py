"""The key of a boot snapshot: a digest of all that a boot depends on."""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

import msgspec

from ramet.engine.drivers import Choice
from ramet.engine.manifest import USUAL_FORMAT
from ramet.images.image import Image
from ramet.model.record import Machine
from ramet.system.cpu import host_cpu
from ramet.system.kvm_kind import kvm_kind

_KEY_BYTES: Final = 16
_VERSION: Final = 1
"""Changed when a guest is captured in another state than before."""


async def key_of(choice: Choice, machine: Machine, image: Image) -> str:
    """Return the key of the guest that `choice` boots as `machine`, 32 hex digits.

    Equal for equal kernels, agents, container images, machine shapes, and releases of the driver; under KVM
    for equal processors, too.
    """
    driver = choice.driver
    bases = tuple(msgspec.structs.replace(base, part_digest=None) for base in machine.bases)
    under_kvm = machine.accelerator == "kvm"
    facts = (
        _VERSION,
        USUAL_FORMAT,
        driver.name,
        await driver.version(),
        msgspec.structs.replace(machine, bases=bases),
        driver.arguments(machine),
        (image.kernel_digest, image.initramfs_digest, image.agent_digest),
        (host_cpu(), kvm_kind()) if under_kvm else None,
    )
    return blake2b(msgspec.json.encode(facts), digest_size=_KEY_BYTES).hexdigest()
