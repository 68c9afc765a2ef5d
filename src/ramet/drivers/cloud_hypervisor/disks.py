"""Raw disks whose guest wrote what makes them look like another format's file.

Cloud Hypervisor opens a disk by the format that it detects and compares that with the given format only
afterwards (seen with 53.0). It never reads a host's file that way, but it refuses the disk, so a guest that
writes qcow2's magic into its first sector, or a fixed VHD's footer into its last, would keep all its forks
from being restored. A fork's raw disk is its own copy, though, and its guest is paused: what is detected is
taken out until the disk is open.

Sources: `detect_image_type` in Cloud Hypervisor's `block/src/lib.rs`, at v53.0; QEMU's
`docs/interop/qcow2.txt`, "Header"; [MS-VHDX] 2.1, "File Type Identifier"; "Virtual Hard Disk Image Format
Specification", "Hard Disk Footer Format".
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from ramet.drivers.cloud_hypervisor.files import CHANGED
from ramet.errors import VmmError
from ramet.model.record import Disk
from ramet.system.files import filesystem_errors, write_all

_SECTOR_BYTES: Final = 512
_AT_THE_BEGINNING: Final = {b"QFI\xfb": "qcow2", b"vhdxfile": "VHDX"}
_FOOTER: Final = struct.Struct(">8s4xIQ36xI")
"""The last sector of a VHD: cookie, version of the format, offset of its tables, kind of disk."""
_COOKIE: Final = b"conectix"
_FIXED_VHD: Final = (_COOKIE, 0x0001_0000, 0xFFFF_FFFF_FFFF_FFFF, 2)


class _Magic(NamedTuple):
    """A magic in a disk, at `offset` bytes."""

    format: str
    content: bytes
    offset: int


def require_disks(directory: Path, disks: Sequence[Disk]) -> None:
    """Raise `VmmError` unless each disk in `directory` is a regular file of exactly its size.

    Cloud Hypervisor accepts a shorter disk in silence, and the guest's writes behind its end fail. Raises
    `FilesystemError` for a file that can't be read.
    """
    for disk in disks:
        path = directory / disk.file
        with filesystem_errors("read", path), _opened(path, os.O_RDONLY) as descriptor:
            facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise VmmError(f"{path} is no regular file")
        if facts.st_size != disk.size_bytes:
            raise VmmError(
                f"{path} has {facts.st_size} bytes, and the machine's disk {disk.size_bytes}",
                hint=CHANGED,
            )


def foreign_format(path: Path) -> str | None:
    """Return the format that a raw disk would be taken for; None for an ordinary disk.

    Raises `FilesystemError`.
    """
    with filesystem_errors("read", path), _opened(path, os.O_RDONLY) as descriptor:
        magics = _find(descriptor)
    return magics[0].format if magics else None


@contextmanager
def magics_hidden(directory: Path, disks: Sequence[Disk]) -> Iterator[bool]:
    """Take foreign magics out of the raw disks in `directory` inside, and put them back at the end.

    Yields whether there are any: their guest must not run inside. Only for a guest's own copies, because a
    process that is killed inside leaves the disks without the magics. Raises `FilesystemError`.
    """
    with ExitStack() as leaving:
        is_any = False
        for disk in disks:
            path = directory / disk.file
            with filesystem_errors("read", path):
                if disk.format != "raw":
                    continue
                # Only a disk that has a magic is opened for writing.
                with _opened(path, os.O_RDONLY) as descriptor:
                    magics = _find(descriptor)
                if not magics:
                    continue
                is_any = True
                writing = leaving.enter_context(_opened(path, os.O_RDWR))
                leaving.enter_context(filesystem_errors("write", path))
                for magic in magics:
                    leaving.callback(write_all, writing, magic.content, magic.offset)
                    write_all(writing, bytes(len(magic.content)), magic.offset)
        yield is_any


def _find(descriptor: int) -> list[_Magic]:
    """Return what Cloud Hypervisor would detect, and no more: a guest with such a disk isn't booted."""
    head = os.pread(descriptor, max(map(len, _AT_THE_BEGINNING)), 0)
    magics = [_Magic(name, magic, 0) for magic, name in _AT_THE_BEGINNING.items() if head.startswith(magic)]
    last = os.fstat(descriptor).st_size - _SECTOR_BYTES
    footer = os.pread(descriptor, _FOOTER.size, last) if last >= 0 else b""
    if len(footer) == _FOOTER.size and _FOOTER.unpack(footer) == _FIXED_VHD:
        magics.append(_Magic("VHD", _COOKIE, last))
    return magics


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
