"""Documents in the form that Cloud Hypervisor 53 writes, by its sources: made by hand, saved by no VMM.

`test_cloud_hypervisor_real_documents` has documents that a real VMM saved, and compares the two forms.
"""

from __future__ import annotations

import json
from typing import Any

from ramet.drivers.cloud_hypervisor import config, releases, state
from ramet.drivers.cloud_hypervisor.driver import CloudHypervisor
from ramet.drivers.cloud_hypervisor.state import State
from ramet.model.record import Machine
from ramet.units import MIB

VERSION = "53.0.0"
SIZE = 64 * MIB
LARGEST = 18446744073709551615


def machine(memory_bytes: int = SIZE, *, cpus: int = 1, disks: int = 1) -> Machine:
    """A machine of a 53."""
    driver = CloudHypervisor().as_of(VERSION)
    return driver.machine(
        accelerator="kvm", memory_bytes=memory_bytes, cpus=cpus, disk_bytes=(16 * MIB,) * disks
    )


def parsed(text: bytes, made: Machine) -> State:
    """The state as the driver reads it."""
    return state.parse(
        text,
        regions=releases.ram_regions(made.memory_bytes),
        cpus=made.cpus,
        devices=config.device_ids(made),
        where="it",
    )


def saved_config(made: Machine) -> dict[str, Any]:
    """The configuration with what a VMM fills in."""
    document = config.vm_config(made, initramfs=True)
    document["cpus"] |= {"topology": None, "max_phys_bits": 46, "kvm_hyperv": False, "features": {}}
    document["memory"] |= {"hotplug_method": "Acpi", "mergeable": False, "hotplug_size": None}
    document["memory"]["zones"][0] |= {"prefault": False, "hugepages": False, "host_numa_node": None}
    document["payload"] |= {"firmware": None}
    document["serial"] |= {"file": None, "iommu": False, "socket": None}
    document["console"] |= {"file": None, "iommu": False}
    document = {"net": None, **document, "fs": None, "devices": None, "watchdog": False, "pvpanic": False}
    if made.disks or made.bases:
        for disk in document["disks"]:
            disk |= {"direct": False, "serial": None, "backing_files": False}
            disk.setdefault("readonly", False)
    else:
        document["disks"] = None
    return document


def memory_manager(made: Machine) -> dict[str, Any]:
    """The memory manager's state."""
    regions = releases.ram_regions(made.memory_bytes)
    return {
        "memory_ranges": {
            "data": [{"gpa": part.guest_start, "length": part.length_bytes} for part in regions]
        },
        "guest_ram_mappings": [
            {
                "slot": slot,
                "gpa": part.guest_start,
                "size": part.length_bytes,
                "zone_id": "mem0",
                "virtio_mem": False,
                "file_offset": part.file_offset,
            }
            for slot, part in enumerate(regions)
        ],
        "start_of_device_area": 1 << 36,
        "boot_ram": made.memory_bytes,
        "current_ram": made.memory_bytes,
        "arch_mem_regions": [{"base": 0, "size": LARGEST, "r_type": "Ram"}],
        "hotplug_slots": [],
        "next_memory_slot": len(regions),
    }


def vm_state() -> dict[str, Any]:
    """The state of the VM itself: a clock whose flags are 14."""
    clock = [*range(1, 9), 14, 0, 0, 0, *range(13, 49)]
    return {"clock": {"Kvm": clock}, "common_cpuid": [{"function": 1, "eax": 0xFFFFFFFF}]}


def component(state: dict[str, Any] | None, **snapshots: Any) -> dict[str, Any]:
    """A node of the tree."""
    data = None if state is None else {"state": json.dumps(state)}
    return {"snapshots": snapshots, "snapshot_data": data}


def saved_state(
    made: Machine, *, memory: dict[str, Any] | None = None, vm: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The whole tree."""
    cpus = {str(number): component({"msrs": [{"index": 16, "data": LARGEST}]}) for number in range(made.cpus)}
    ours = config.device_ids(made)
    names = [*ours, *(f"_virtio-pci-{name}" for name in (*ours, "__rng")), "__serial", "__rng", "__ioapic"]
    devices = {name: component({"avail_features": LARGEST}) for name in names}
    tree = {name: {"id": name, "resources": []} for name in names}
    snapshots = {
        "cpu-manager": component(None, **cpus),
        "memory-manager": component(memory or memory_manager(made)),
        "device-manager": component({"device_tree": tree, "device_id_cnt": 3}, **devices),
    }
    return component(vm or vm_state(), **snapshots)


def encoded(document: dict[str, Any]) -> bytes:
    """A document as a VMM writes it: on one line, or in several."""
    return json.dumps(document, indent=2).encode()
