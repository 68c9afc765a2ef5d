"""Guests that their VMM has paused because the host refused to write one of their disks.

A guest can't do anything about a disk that is full on the host, and an error would cost it data. So QEMU
pauses the guest instead (`werror=stop`), with the write still to be done, and repeats the write when the
guest is resumed. Firecracker can't do that: its guests get an I/O error.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final

import anyio

from ramet.drivers.interface import NamesDiskErrors, StopsOnWriteErrors
from ramet.engine.context import Context
from ramet.errors import FilesystemError, RametError, WrongStateError
from ramet.model.record import Record
from ramet.system import threads
from ramet.system.files import free_bytes
from ramet.system.publishing import sync_filesystem
from ramet.units import MIB, format_bytes

_LITTLE_BYTES: Final = MIB
_LOOK_S: Final = 0.03
_LOOKS: Final = 10
_TRIES: Final = 8
_IN_WORDS: Final = {"nospace": "No space left on device"}


def is_stopped(context: Context, record: Record, directory: Path | None = None) -> bool:
    """Tell whether its VMM has paused the guest over a disk; from files alone, so it is fit for `ps`.

    The VMM works in `directory`, by default the instance's own.
    """
    if not record.machine.disks:
        return False
    driver: object = context.drivers.get(record.driver)
    if not isinstance(driver, StopsOnWriteErrors):
        return False
    try:
        return driver.is_stopped_by_disk(directory or context.directory(record))
    except OSError:
        return False  # its log can't be read: the next request to the VMM finds out


def reason(context: Context, record: Record, errors: dict[str, str] | None = None) -> str:
    """Tell why the guest is paused, and what resumes it. `errors` are those that the VMM named, by disk."""
    if errors:
        which = ", ".join(f"`{disk}` ({_IN_WORDS.get(why, why)})" for disk, why in sorted(errors.items()))
    else:
        which = " or ".join(f"`{disk.name}`" for disk in record.machine.disks)
    return (
        f"io-error: the host refused a write to the disk {which}{_little(context, record)}; the guest is"
        f" paused and has lost nothing: make room there, then `ramet resume {record.name}`"
    )


def _little(context: Context, record: Record) -> str:
    directory = context.directory(record)
    try:
        free = free_bytes(directory)
    except OSError:
        return ""
    if free is None or free >= _LITTLE_BYTES:
        return ""
    return f", whose filesystem has {format_bytes(free)} left ({directory})"


async def named(context: Context, record: Record) -> str | None:
    """Return the reason, with the VMM's names of the disks if it answers; None without such a pause.

    The VMM may name an older error: QEMU remembers it for a while after a resume.
    """
    if not is_stopped(context, record):
        return None
    vmm = context.vmm(record)
    if not isinstance(vmm, NamesDiskErrors):
        return reason(context, record)
    try:
        return reason(context, record, await vmm.disk_errors())
    except RametError:
        return reason(context, record)


async def resume(context: Context, record: Record) -> None:
    """Resume a guest that was paused over a disk, which does the refused write again.

    Raises `WrongStateError` when the host refuses it again, `VmmError`: the guest is paused then, as before.
    """
    why: str | None = None
    # Of several writes under way each may have been refused while there was no room yet.
    for _ in range(_TRIES):
        # ext4 and others give freed blocks back only once they have written down that those are free.
        await threads.run(_commit, context.directory(record))
        await context.vmm(record).resume()
        for _ in range(_LOOKS):
            await anyio.sleep(_LOOK_S)
            if (why := await named(context, record)) is not None:
                break
        else:
            return
        if _little(context, record):
            break
    raise WrongStateError(
        f"{record.name} is paused again ({why})",
        hint="free some space on that filesystem first, or raise its quota;"
        f" `ramet stop --timeout 0 {record.name}` gives up what it hasn't written",
    )


def _commit(directory: Path) -> None:
    with suppress(FilesystemError):  # the guest's write is what tells
        sync_filesystem(directory)
