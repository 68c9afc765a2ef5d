"""Data disks that the guest mounts by itself: whether it can, its kernel arguments, and its errors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import msgspec

from ramet.disk.filesystem import find_mke2fs
from ramet.errors import DamagedError, GuestError, UsageError
from ramet.images.image import Image
from ramet.model.disks import NewDisk, mount_arguments, mounted
from ramet.model.record import Machine, Record
from ramet.paths import CONSOLE_LOG
from ramet.system import bounded_log
from ramet.text import printable

_REFUSED: Final = re.compile(r"ramet: (?P<disk>disk\d*) can't be mounted at (?P<path>/\S+): (?P<why>.+)")
"""The line that the agent writes to the console before it powers off (`guest/agent/init/disks.c`)."""
_NO_BASE: Final = re.compile(r"ramet: base (?P<base>\w+) isn't what the image says: (?P<why>.+)")
_NO_ROOT: Final = re.compile(r"ramet: (?P<what>the image can't be mounted|the root[^:]{1,60}): (?P<why>.+)")
"""The same of `guest/agent/init/bases.c` and `root.c`, in a guest of a container image."""
_LAST_LINES: Final = 6


def with_mounts(machine: Machine, wanted: tuple[NewDisk, ...]) -> Machine:
    """Return the machine whose guest is told which of its disks to mount where."""
    disks = mounted(machine.disks, wanted)
    arguments = " ".join(filter(None, (machine.kernel_arguments, mount_arguments(disks))))
    return msgspec.structs.replace(machine, disks=disks, kernel_arguments=arguments)


def require_mountable(image: Image, disks: tuple[NewDisk, ...]) -> None:
    """Raise an error unless the image's guest can mount the disks that have a path.

    `UsageError` when the guest mounts nothing, `UnavailableError` when no filesystem can be made here.
    """
    path = next((disk.path for disk in disks if disk.path is not None), None)
    if path is None:
        return
    if image.guest != "linux":
        raise UsageError(
            f"the guest of {image.name} mounts no disk at {path}: it knows no filesystems",
            hint="leave the path out, as in --disk 1G",
        )
    find_mke2fs()


def require_mounted(directory: Path, record: Record) -> None:
    """Raise `GuestError` when a VMM that has just ended did so because its guest couldn't mount a disk.

    Raises `DamagedError` when it couldn't mount its image, which isn't what its record says. Only the
    guest can say that, on its console, and it matters to its user alone.
    """
    text = printable(bounded_log.tail(directory / CONSOLE_LOG, 4096))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for line in reversed(lines[-_LAST_LINES:]):
        if refusal := _REFUSED.search(line):
            file = next((disk.file for disk in record.machine.disks if disk.name == refusal["disk"]), "")
            raise GuestError(
                f"{record.name}: its disk `{refusal['disk']}` can't be mounted at {refusal['path']}:"
                f" {refusal['why'][:200]}",
                hint=f"the disk is {directory / file}; if it was written before, its filesystem is damaged",
            )
        if refusal := _NO_BASE.search(line):
            raise DamagedError(
                f"{record.name}: the part `{refusal['base']}` isn't what its image {record.image} says:"
                f" {refusal['why'][:200]}",
                hint=f"`ramet pull {record.image}`, or import it again",
            )
        if refusal := _NO_ROOT.search(line):
            raise GuestError(
                f"{record.name}: its guest has no root: {refusal['what']}: {refusal['why'][:200]}",
                hint=f"its files are in {directory}; a root disk that was written before may be damaged",
            )
