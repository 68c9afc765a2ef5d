"""The root of a container image's guest: devices with the image, and a place for what the guest writes."""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from ramet.disk.filesystem import find_mke2fs
from ramet.errors import DamagedError, UsageError
from ramet.images.library.places import why_damaged
from ramet.images.library.records import ContainerImage
from ramet.model.container import MainProcess
from ramet.model.record import Disk, Machine, Record
from ramet.model.rootfs import DEFAULT_ROOT_BYTES, Rootfs
from ramet.system.files import filesystem_errors
from ramet.system.share import link_or_copy
from ramet.units import format_bytes

ROOT_DISK: Final = "root"
_MOST_ARGUMENT_BYTES: Final = 2047
"""Linux, `arch/x86/include/asm/setup.h`: COMMAND_LINE_SIZE is 2048, with the final NUL."""
_DIGEST_DIGITS: Final = 32


class Container(NamedTuple):
    """A container image for a new instance, with the choices of its user."""

    image: ContainerImage
    main: MainProcess
    rootfs: Rootfs = Rootfs()


def disk_sizes(container: Container) -> tuple[int, ...]:
    """Return the sizes of the disks that the root needs: one, or none when it lies in RAM."""
    rootfs = container.rootfs
    return (rootfs.size_bytes or DEFAULT_ROOT_BYTES,) if rootfs.kind == "disk" else ()


def with_root(machine: Machine, root: Disk | None, container: Container) -> Machine:
    """Return the machine with the image's devices and, unless the root is in RAM, the root disk `root`.

    The root disk comes after the data disks, so that these keep their names in the guest. Raises `UsageError`
    when the guest's RAM can't hold the root, or when the kernel's command line would get too long,
    `UnavailableError` when no filesystem can be made here.
    """
    rootfs, disks = container.rootfs, machine.disks
    if root is not None:
        find_mke2fs()
        file = f"{ROOT_DISK}{root.file.removeprefix(root.name)}"
        disks = (*disks, msgspec.structs.replace(root, name=ROOT_DISK, file=file, path="/"))
    elif rootfs.size_bytes is not None and rootfs.size_bytes > machine.memory_bytes:
        raise UsageError(
            f"a root of {format_bytes(rootfs.size_bytes)} in RAM doesn't fit into a guest with"
            f" {format_bytes(machine.memory_bytes)} of memory",
            hint="ask for less, give the guest more memory, or put its root on a disk: --rootfs disk:SIZE",
        )
    machine = msgspec.structs.replace(machine, disks=disks, bases=container.image.bases)
    arguments = f"{machine.kernel_arguments} {root_arguments(machine, rootfs)}"
    if len(arguments) > _MOST_ARGUMENT_BYTES:
        raise UsageError(
            f"the kernel's command line would have {len(arguments)} characters; it takes"
            f" {_MOST_ARGUMENT_BYTES}",
            hint="mount fewer disks, or at shorter paths",
        )
    return msgspec.structs.replace(machine, kernel_arguments=arguments)


def root_arguments(machine: Machine, rootfs: Rootfs) -> str:
    """Return the kernel arguments that tell the agent what its root is (`guest/agent/init/rootfs.c`)."""
    words = [
        f"ramet.base={number},{base.name}:{base.blocks}:{base.digest[:_DIGEST_DIGITS]}"
        for number, base in enumerate(machine.bases, start=len(machine.disks))
    ]
    if rootfs.kind == "ram":
        words.append(f"ramet.root=ram:{rootfs.size_bytes or machine.memory_bytes // 2}")
    else:
        words.append(f"ramet.root=disk:{len(machine.disks) - 1},{ROOT_DISK}")
    return " ".join(words)


def require_bases(directory: Path, record: Record) -> None:
    """Check the size and the mark of each part of its image in an instance's directory.

    Raises `DamagedError` before a VMM is started: QEMU says less of a missing file, and the agent less of a
    cut one.
    """
    for base in record.machine.bases:
        if (why := why_damaged(directory / base.file, base)) is not None:
            path = directory / base.file
            raise DamagedError(
                f"{record.name} is damaged: the part of its image {record.image} in {path} {why}",
                hint=f"`ramet pull {record.image}`, or import it again, and make a new instance; the disks of"
                f" {record.name} are in {directory}",
            )


def link_bases(directory: Path, image: ContainerImage) -> None:
    """Link the image's devices into an instance's directory, after a look at the size and mark of each.

    Raises `DamagedError` when one is missing, cut, or another's; `FilesystemError`.
    """
    for base in image.bases:
        path = image.path_of(base)
        if (why := why_damaged(path, base)) is not None:
            raise DamagedError(
                f"the image {image.name} is damaged: its file {path} {why}",
                hint=f"`ramet pull {image.name}`, or import it again, makes the file anew; instances keep"
                " their files",
            )
        with filesystem_errors("link", path):
            link_or_copy(path, directory / base.file)
