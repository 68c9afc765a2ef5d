"""QEMU's command line for a machine. Pure: the same machine gives the same arguments.

It has only the needs of a fork. Nothing that discards guest RAM may be added (balloon, free-page reporting,
virtio-mem, `prealloc`, `discard-data`): on a mem-file mapping they punch holes in the file that all forks
share (I1).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from ramet.drivers.qemu import disks, releases
from ramet.model.record import Machine, RamRegion
from ramet.paths import CONSOLE_LOG, INITRAMFS_FILE, KERNEL_FILE, MEM_FILE
from ramet.units import GIB

# no_timer_check: under emulation one boot in about sixty panics in the kernel's timer check. panic=-1: a
# panicked guest reboots at once instead of spinning. quiet: every character on an emulated serial line costs
# an exit. cryptomgr.notests and tsc=reliable: about 1.1 s of 3.9 s of an emulated boot are self-tests and
# waiting to trust the clock.
KERNEL_ARGUMENTS: Final = "console=ttyS0 no_timer_check panic=-1 quiet cryptomgr.notests tsc=reliable"

# 141 is cx16. Before 8.0, an emulated cmpxchg16b leaves garbage in EFLAGS until the next instruction that
# sets flags. An interrupt in between saves the garbage, and its end restores it: Linux 6.12, which branches
# right behind the instruction, panicked in four boots of ten. Without the bit the kernel doesn't use the
# instruction; programs still see it.
_WITHOUT_CMPXCHG16B: Final = "clearcpuid=141 "

_MACHINE_OPTIONS: Final = "memory-backend=mem,suppress-vmdesc=on,usb=off,vmport=off,graphics=off"


_FIRST_DISK_SLOT: Final = 0x5
# hw/i386/pc_piix.c: what doesn't fit below 3.5 GiB goes above 4 GiB, and then only 3 GiB stay below.
_LOW_LIMIT_BYTES: Final = 3 * GIB + GIB // 2
_LOW_BYTES_OF_MORE: Final = 3 * GIB
_HIGH_START: Final = 4 * GIB


def cpu_model(accelerator: str) -> str:
    """Return the CPU that the guest sees: the host's under KVM, otherwise everything that TCG emulates.

    Five-level page tables are left out, because they only make every emulated walk longer.
    """
    return "host" if accelerator == "kvm" else "max,la57=off"


def for_release(kernel_arguments: str, accelerator: str, numbers: tuple[int, int]) -> str:
    """Return the guest kernel's command line as a machine of that release of QEMU needs it."""
    plain = kernel_arguments.removeprefix(_WITHOUT_CMPXCHG16B)
    if accelerator == "tcg" and numbers < releases.FLAGS_OF_CMPXCHG16B_SINCE:
        return _WITHOUT_CMPXCHG16B + plain
    return plain


def ram_regions(memory_bytes: int) -> tuple[RamRegion, ...]:
    """Return where the RAM of a `pc-i440fx` machine lies.

    It is one mapping of one file, in which the part above 4 GiB follows the low part.
    """
    if memory_bytes < _LOW_LIMIT_BYTES:
        return (RamRegion(0, memory_bytes, 0),)
    return (
        RamRegion(0, _LOW_BYTES_OF_MORE, 0),
        RamRegion(_HIGH_START, memory_bytes - _LOW_BYTES_OF_MORE, _LOW_BYTES_OF_MORE),
    )


def common_arguments(
    machine: Machine, monitor_fd: object, agent_fds: Sequence[object], *, numbers: tuple[int, int]
) -> list[str]:
    """Return the arguments that a booted and a restored QEMU have in common: the machine itself.

    `monitor_fd` and `agent_fds` are listening sockets that QEMU inherits, or placeholders for them; `numbers`
    are its release. Devices keep their order and addresses: a vmstate fits only the machine that it was saved
    from.
    """
    mem = f"memory-backend-file,id=mem,size={machine.memory_bytes},mem-path={MEM_FILE},share=off"
    if numbers >= releases.READ_ONLY_SINCE:
        mem += ",readonly=on,rom=off"
    monitor = ("-mon", "chardev=qmp,mode=control")
    if numbers >= releases.MONITOR_OBJECTS_SINCE:
        monitor = ("-object", "monitor-qmp,id=monitor,chardev=qmp")
    arguments = [
        *("-no-user-config", "-nodefaults", "-display", "none"),
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
        *("-machine", f"{machine.machine_type},accel={machine.accelerator},{_MACHINE_OPTIONS}"),
        *("-cpu", machine.cpu_model),
        *("-smp", str(machine.cpus)),
        *("-m", f"{machine.memory_bytes}b"),
        *("-object", mem),
        *("-chardev", f"socket,id=qmp,fd={monitor_fd},server=on,wait=off"),
        *monitor,
        *("-chardev", f"file,id=console,path={CONSOLE_LOG},append=on"),
        *("-serial", "chardev:console"),
        *("-device", f"virtio-serial-pci,id=ports,addr=0x4,max_ports={len(agent_fds) + 1}"),
    ]
    if machine.vmgenid:
        arguments += ["-device", "vmgenid,guid=auto"]  # another one in each VMM; the guest hears of it
    for slot, disk in enumerate(machine.disks, start=_FIRST_DISK_SLOT):
        for node in disks.nodes(disk):
            arguments += ["-blockdev", json.dumps(node)]
        device = f"virtio-blk-pci,id={disk.name},drive={disks.node_name(disk.file)}"
        arguments += ["-device", f"{device},serial={disk.name},addr={slot:#x}"]
    for slot, base in enumerate(machine.bases, start=_FIRST_DISK_SLOT + len(machine.disks)):
        for node in disks.read_only_nodes(base):
            arguments += ["-blockdev", json.dumps(node)]
        device = f"virtio-blk-pci,id={base.name},drive={disks.node_name(base.file)}"
        arguments += ["-device", f"{device},serial={base.name},addr={slot:#x}"]
    for number, fd in enumerate(agent_fds):
        arguments += ["-chardev", f"socket,id=agent{number},fd={fd},server=on,wait=off"]
        arguments += [
            "-device",
            f"virtserialport,bus=ports.0,nr={number + 1},chardev=agent{number},name=ramet.agent.{number}",
        ]
    # A guest that reboots takes its VMM with it, and the engine starts the instance cold, as itself. A
    # restored one couldn't reboot in place (the BIOS at the top of 4 GiB isn't in its mem-file), and a booted
    # one would come up as nobody.
    arguments += ["-action", "reboot=shutdown"]
    # What `Qemu.ending` reads back from the log.
    arguments += ["-trace", "runstate_set", "-trace", "qemu_system_shutdown_request"]
    # The stream that xen-save-devices-state writes has no configuration section.
    arguments += ["-global", "migration.send-configuration=off"]
    return arguments


def host_arguments(machine: Machine) -> list[str]:
    """Return arguments that the guest doesn't see, so that a vmstate fits with and without them.

    A write that the host refuses pauses the guest, and after the resume the guest repeats that write: by
    default QEMU does so for ENOSPC alone, and reports an exceeded quota or limit to the guest as a broken
    disk.
    """
    return ["-global", "virtio-blk-device.werror=stop"] if machine.disks else []


def boot_arguments(machine: Machine) -> list[str]:
    """Return the further arguments of a QEMU that boots its guest."""
    kernel = ["-kernel", KERNEL_FILE, "-initrd", INITRAMFS_FILE]
    return [*kernel, "-append", machine.kernel_arguments]


def restore_arguments() -> list[str]:
    """Return the further arguments of a QEMU that restores its guest, whose kernel is in the mem-file."""
    return ["-S", "-incoming", "defer"]
