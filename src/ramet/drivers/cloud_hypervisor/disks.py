"""Raw disks whose guest wrote another format's magic into their first sector.

Cloud Hypervisor opens a disk by the format that it detects and compares that with the given format only
afterwards (seen with 53.0). It never reads a host's file that way, but it refuses the disk, so a guest that
writes qcow2's into its first sector would keep all its forks from being restored. A fork's raw disk is its
own copy, though, and its guest is paused: the magic is taken out until the disk is open.

Sources: QEMU's `docs/interop/qcow2.txt`, "Header"; [MS-VHDX] 2.1, "File Type Identifier"; "Virtual Hard Disk
Image Format Specification", "Hard Disk Footer Format".
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from ramet.model.record import Disk
from ramet.system.files import filesystem_errors, write_all

_MAGICS: Final = {b"QFI\xfb": "qcow2", b"vhdxfile": "VHDX", b"conectix": "VHD"}
_LONGEST: Final = max(map(len, _MAGICS))


def foreign_format(path: Path) -> str | None:
    """Return the format that a raw disk's first sector claims; None for an ordinary disk.

    Raises `FilesystemError`.
    """
    with filesystem_errors("read", path), _opened(path, os.O_RDONLY) as descriptor:
        magic = _magic(descriptor)
    return _MAGICS[magic] if magic else None


@contextmanager
def magics_hidden(directory: Path, disks: Sequence[Disk]) -> Iterator[bool]:
    """Take foreign magics out of the raw disks in `directory` inside, and put them back at the end.

    Yields whether there are any: their guest must not run inside. Only for disks that are nobody else's:
    a process that dies inside leaves them without. Raises `FilesystemError`.
    """
    with ExitStack() as leaving:
        is_any = False
        for disk in disks:
            path = directory / disk.file
            with filesystem_errors("read", path):
                if disk.format != "raw":
                    continue
                # Only a disk that has one is opened for writing.
                with _opened(path, os.O_RDONLY) as descriptor:
                    magic = _magic(descriptor)
                if not magic:
                    continue
                is_any = True
                writing = leaving.enter_context(_opened(path, os.O_RDWR))
                leaving.enter_context(filesystem_errors("write", path))
                leaving.callback(write_all, writing, magic, 0)
                write_all(writing, bytes(len(magic)), 0)
        yield is_any


def _magic(descriptor: int) -> bytes:
    head = os.pread(descriptor, _LONGEST, 0)
    return next((magic for magic in _MAGICS if head.startswith(magic)), b"")


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
