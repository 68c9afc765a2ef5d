"""Which drivers there are."""

from __future__ import annotations

from ramet.drivers.api import Driver
from ramet.drivers.firecracker import Firecracker
from ramet.drivers.qemu import Qemu


def installed_drivers() -> list[Driver]:
    """The drivers that ramet has, in the order in which `auto` tries them."""
    return [Firecracker(), Qemu()]
