"""Cloud Hypervisor's configuration of a machine, as JSON. Pure: the same machine gives the same documents.

Every path is relative to the VMM's working directory, the instance's own. Each device has an id, because a
restored device finds its state by its id.

Cloud Hypervisor believes the configuration that it restores from: a device that is missing in it, another
size, or another file is taken in silence (seen with 53.0). So a saved configuration has to be the one that
ramet made of the machine, and what Cloud Hypervisor added to it may name nothing outside the directory.

Nothing that discards guest RAM may be added (balloon, free-page reporting, virtio-mem), nor `thp`,
`prefault` or a shared zone: forks share the mem-file (I1).

Source: Cloud Hypervisor's `vmm/src/api/openapi/cloud-hypervisor.yaml` and `vmm/src/vm_config.rs`.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from ramet.errors import DamagedError
from ramet.model.record import Machine
from ramet.paths import INITRAMFS_FILE, MEM_FILE, VSOCK_SOCKET
from ramet.units import KIB

GUEST_CID: Final = 3
"""The guest's address on its vsock, the same for all, because each VMM has its own socket."""
KERNEL_ONCE: Final = "kernel.once"
"""The kernel's path during a boot. It is gone afterwards: a guest's reset then ends its VMM."""
_NO_KERNEL: Final = "gone"
"""The kernel's path in a restored machine, where there is none. Without any path a restore is refused."""
MOST_BYTES: Final = 256 * KIB
"""The largest `config.json` that is read. With a disk it has 1 KB."""
ZONE: Final = "mem0"
"""The id of the machine's only memory zone."""
_ON: Final = frozenset({"sparse", "offload_tso", "offload_ufo", "offload_csum"})
"""Switches that Cloud Hypervisor adds and turns on by itself."""
_PARTS: Final = frozenset({"features", "debug_console"})
"""Parts that Cloud Hypervisor adds by itself; any other part would be another device."""
VSOCK_ID: Final = "vsock0"

# As for Firecracker, whose devices the guest's kernel finds, too; ACPI's power switch works here.
KERNEL_ARGUMENTS: Final = (
    "console=ttyS0 reboot=k panic=-1 quiet 8250.nr_uarts=1 cryptomgr.notests tsc=reliable"
)


def vm_config(machine: Machine, *, initramfs: bool) -> dict[str, Any]:
    """Return the body of `PUT vm.create`."""
    payload = {"kernel": KERNEL_ONCE, "cmdline": machine.kernel_arguments}
    if initramfs:
        payload["initramfs"] = INITRAMFS_FILE
    config: dict[str, Any] = {
        "cpus": {"boot_vcpus": machine.cpus, "max_vcpus": machine.cpus, "nested": False},
        "memory": {
            "size": 0,
            "thp": False,
            "zones": [{"id": ZONE, "size": machine.memory_bytes, "file": MEM_FILE, "shared": False}],
        },
        "payload": payload,
        "vsock": {"id": VSOCK_ID, "cid": GUEST_CID, "socket": VSOCK_SOCKET},
        "serial": {"mode": "Tty"},
        "console": {"mode": "Off"},
        "rng": {"src": "/dev/urandom"},
    }
    if machine.disks or machine.bases:
        config["disks"] = [
            {"id": disk.name, "path": disk.file, "image_type": "Raw", "num_queues": 1}
            for disk in machine.disks
        ] + [
            {"id": base.name, "path": base.file, "image_type": "Raw", "num_queues": 1, "readonly": True}
            for base in machine.bases
        ]
    if machine.nics:
        config["net"] = [{"id": nic.name, "tap": nic.tap, "mac": nic.mac} for nic in machine.nics]
    return config


def device_ids(machine: Machine) -> frozenset[str]:
    """Return the ids that ramet gave to the machine's devices."""
    disks = (*(disk.name for disk in machine.disks), *(base.name for base in machine.bases))
    return frozenset({VSOCK_ID, *disks, *(nic.name for nic in machine.nics)})


def parse(text: bytes, *, where: str) -> dict[str, Any]:
    """Parse a `config.json`. Raises `DamagedError` when it is too long or no JSON object."""
    if len(text) > MOST_BYTES:
        raise DamagedError(f"{where}: its configuration has {len(text)} bytes, more than {MOST_BYTES}")
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DamagedError(f"{where}: its configuration can't be read: {error}") from error


def require_fits(saved: dict[str, Any], machine: Machine, *, where: str) -> None:
    """Check that a saved configuration is that machine's and leads nowhere else.

    What Cloud Hypervisor filled in may be numbers, names and switches that are off, but no path, no further
    device, and no switch that it doesn't turn on by itself (a prefault, say, would copy all of RAM).
    The payload isn't compared: a restore doesn't use the saved one. TAP devices aren't, because each fork
    has its own. Raises `DamagedError`.
    """
    expected = vm_config(machine, initramfs=False)
    compared = dict(saved)
    for document in (expected, compared):
        document.pop("payload", None)
    if "net" in compared:
        compared["net"] = _without_host_devices(compared["net"])
        expected["net"] = _without_host_devices(expected.get("net"))
    if (difference := _difference(expected, compared, "")) is not None:
        raise DamagedError(
            f"{where}: its configuration isn't that of its machine: {difference}",
            hint="make the capture again",
        )


def restore_config(machine: Machine) -> dict[str, Any]:
    """Return the `config.json` that a guest of that machine is restored from.

    It is made of the machine alone, as at a boot: nothing of a saved configuration gets into it, whose author
    may be anybody. Cloud Hypervisor fills in what it had filled in at the boot, and each device finds its
    state by its id.
    """
    return {**vm_config(machine, initramfs=False), "payload": {"kernel": _NO_KERNEL}}


def _without_host_devices(net: Any) -> Any:
    if not isinstance(net, list):
        return net
    ours = {"tap", "host_mac"}
    return [
        {key: value for key, value in device.items() if key not in ours}
        if isinstance(device, dict)
        else device
        for device in net
    ]


def _difference(expected: Any, saved: Any, path: str) -> str | None:
    """Return where `saved` isn't what was given, or has a further device or a path; None when it is right."""
    if isinstance(expected, dict) and isinstance(saved, dict):
        for key, value in expected.items():
            if key not in saved:
                return f"`{path}{key}` is missing"
            if (difference := _difference(value, saved[key], f"{path}{key}.")) is not None:
                return difference
        for key in saved.keys() - expected.keys():
            if (difference := _addition(saved[key], f"{path}{key}")) is not None:
                return difference
        return None
    if isinstance(expected, list) and isinstance(saved, list) and len(expected) == len(saved):
        for number, (value, there) in enumerate(zip(expected, saved, strict=True)):
            if (difference := _difference(value, there, f"{path}{number}.")) is not None:
                return difference
        return None
    if type(expected) is type(saved) and expected == saved:
        return None
    return f"`{path.rstrip('.')}` is {_shown(saved)}, not {_shown(expected)}"


def _addition(value: Any, path: str) -> str | None:
    """Return what is wrong about a value that Cloud Hypervisor filled in; None when it is harmless."""
    name = path.rpartition(".")[2]
    match value:
        case True:
            return None if name in _ON else f"`{path}` is on"
        case None | False | int() | float():
            return None
        case str():
            return f"`{path}` names {_shown(value)}" if "/" in value else None
        case dict() if name in _PARTS:
            parts = ((f"{path}.{key}", part) for key, part in value.items())
            return next(filter(None, (_addition(part, name) for name, part in parts)), None)
        case list() if not value:
            return None
        case _:
            return f"`{path}` has {_shown(value)}"


def _shown(value: Any) -> str:
    return f"{value!r:.80}"
