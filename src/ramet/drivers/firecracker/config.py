"""Firecracker's configuration of a machine, as JSON. Pure: the same machine gives the same documents.

Every path is relative to the VMM's working directory, the instance's own: a vmstate embeds these paths, and
then means a fork's own files when the fork's VMM loads it.

Source: Firecracker's `swagger/firecracker.yaml`; `docs/getting-started.md`, "Configuring the microVM without
sending API requests"; `docs/snapshotting/snapshot-support.md`.
"""

from __future__ import annotations

from typing import Final

from ramet.model.record import Machine
from ramet.paths import INITRAMFS_FILE, KERNEL_FILE, MEM_FILE, VSOCK_SOCKET
from ramet.units import MIB

GUEST_CID: Final = 3
"""The guest's address on its vsock, the same for all, because each VMM has its own socket."""

# reboot=k: the guest's reset ends the VMM. ramet.power_off=reset tells the agent so, because there is no
# power switch. 8250.nr_uarts=1: one serial port, and the kernel looks for four. The others as for QEMU.
KERNEL_ARGUMENTS: Final = (
    "console=ttyS0 reboot=k panic=-1 quiet 8250.nr_uarts=1 cryptomgr.notests tsc=reliable "
    "ramet.power_off=reset"
)


def boot_config(machine: Machine, *, initramfs: bool) -> dict[str, object]:
    """Return the `--config-file` of a VM that boots."""
    boot_source: dict[str, object] = {
        "kernel_image_path": KERNEL_FILE,
        "boot_args": machine.kernel_arguments,
    }
    if initramfs:
        boot_source["initrd_path"] = INITRAMFS_FILE
    config: dict[str, object] = {
        "machine-config": {
            "vcpu_count": machine.cpus,
            "mem_size_mib": machine.memory_bytes // MIB,
            "smt": False,
            "track_dirty_pages": machine.track_changes,
        },
        "boot-source": boot_source,
        "drives": [
            {
                "drive_id": disk.name,
                "path_on_host": disk.file,
                "is_root_device": False,
                "is_read_only": False,
                "io_engine": "Sync",
            }
            for disk in machine.disks
        ]
        + [
            {
                "drive_id": base.name,
                "path_on_host": base.file,
                "is_root_device": False,
                "is_read_only": True,
                "io_engine": "Sync",
            }
            for base in machine.bases
        ],
        "network-interfaces": [
            {"iface_id": nic.name, "guest_mac": nic.mac, "host_dev_name": nic.tap} for nic in machine.nics
        ],
        "vsock": {"guest_cid": GUEST_CID, "uds_path": VSOCK_SOCKET},
    }
    if machine.entropy_device:
        config["entropy"] = {}
    if machine.balloon_bytes is not None:
        config["balloon"] = {
            "amount_mib": machine.balloon_bytes // MIB,
            "deflate_on_oom": True,
            "stats_polling_interval_s": 0,
        }
    return config


def count_devices(machine: Machine) -> int:
    """Count the virtio devices of that machine: each has its own interrupt."""
    others = 1 + machine.entropy_device + (machine.balloon_bytes is not None)  # 1: its vsock
    return len(machine.disks) + len(machine.bases) + len(machine.nics) + others


def load_request(
    machine: Machine, vmstate: str, *, resume: bool, network: bool, vsock: bool, track_dirty_pages: bool
) -> dict[str, object]:
    """Return the body of `PUT /snapshot/load`, on the mem-file in the working directory, mapped privately.

    `resume` resumes the guest with the load. Changed pages are tracked after every load: without that no
    `Diff` can be made of what was loaded. `track_dirty_pages` says that this Firecracker has that name for
    it. `network` and `vsock` say whether it takes overrides; if so, the machine's devices are named and
    replace those of the vmstate.
    """
    request: dict[str, object] = {
        "snapshot_path": vmstate,
        "mem_backend": {"backend_type": "File", "backend_path": MEM_FILE},
        "track_dirty_pages" if track_dirty_pages else "enable_diff_snapshots": True,
        "resume_vm": resume,
    }
    if network and machine.nics:
        request["network_overrides"] = [
            {"iface_id": nic.name, "host_dev_name": nic.tap} for nic in machine.nics
        ]
    if vsock:
        request["vsock_override"] = {"uds_path": VSOCK_SOCKET}
    return request
