"""The place of a mem-file in a process's address space.

Source: proc(5), /proc/PID/maps; Documentation/filesystems/proc.rst §1.1.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import stat
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import msgspec

from ramet.errors import UnavailableError, WrongStateError
from ramet.memory.procfs import PTRACE_HINT, read_proc
from ramet.system.copying import has_data
from ramet.system.files import filesystem_errors, open_regular
from ramet.units import FileOffset, HostVirtual


class FileIdentity(NamedTuple):
    """A file as /proc/PID/maps names it. Mostly `st_dev` and `st_ino`; see `identity_of` for when not."""

    device: int
    inode: int


class Area(NamedTuple):
    """A line of /proc/PID/maps."""

    start: int
    end: int
    private: bool
    writable: bool
    file_offset: int
    identity: FileIdentity
    """Inode 0: anonymous."""


class Mapping(msgspec.Struct, frozen=True):
    """A range of a process's memory that was mapped privately from a mem-file when it was looked up."""

    host_start: HostVirtual
    length_bytes: int
    file_offset: FileOffset
    identity: FileIdentity

    @property
    def host_end(self) -> int:
        """The first address behind the range."""
        return self.host_start + self.length_bytes


_DEVICES: dict[int, int] = {}
"""Device numbers in maps by the device number of stat(2), which are slow to find."""


def identity_of(path: Path) -> FileIdentity:
    """Find a file's identity as /proc/PID/maps would show it, by mapping the file and looking.

    On a filesystem with a device number per subvolume (btrfs), stat(2) gives the subvolume's number and maps
    the filesystem's. An empty file can't be mapped: its identity is stat's. Raises `FilesystemError`.
    """
    with filesystem_errors("look at", path), open_regular(path) as descriptor:
        facts = os.fstat(descriptor)
        if (known := _DEVICES.get(facts.st_dev)) is not None:
            return FileIdentity(known, facts.st_ino)
        if facts.st_size:
            with mmap.mmap(
                descriptor, mmap.PAGESIZE if facts.st_size > mmap.PAGESIZE else 0, access=mmap.ACCESS_COPY
            ) as window:
                byte = ctypes.c_char.from_buffer(window)
                address = ctypes.addressof(byte)
                del byte
                for area in areas(os.getpid()):
                    if area.start <= address < area.end:
                        if area.identity.inode == facts.st_ino:
                            _DEVICES[facts.st_dev] = area.identity.device
                        return area.identity
    return FileIdentity(facts.st_dev, facts.st_ino)


def open_file_has_data(pid: int, inode: int) -> bool | None:
    """Tell whether a file that the process has open has anything but holes; None if it has no such file open.

    The file is found by its inode, under any name. If several files have that inode, one with data is enough.

    Raises `UnavailableError` when the process's descriptors can't be read.
    """
    holds_data = None
    try:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            try:
                facts = link.stat()
                if stat.S_ISREG(facts.st_mode) and facts.st_ino == inode:
                    holds_data = bool(holds_data) or has_data(link)
            except FileNotFoundError:
                continue  # closed meanwhile
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise UnavailableError(
            f"the open files of process {pid} can't be read: {error.strerror}", hint=PTRACE_HINT
        ) from error
    return holds_data


def areas(pid: int, within: tuple[int, int] | None = None, *, inode: int | None = None) -> Iterator[Area]:
    """Yield the areas of a process's address space, ascending.

    With `within`, a start and an end, only areas that overlap that range; with `inode`, only areas of files
    with that inode.

    Raises `VmmError` (the process has ended), `UnavailableError`.
    """
    first, behind = within or (0, 1 << 64)
    # A VMM has hundreds of areas, and is paused while they are read, or waited for.
    of_file = b"" if inode is None else b" %d " % inode
    for line in read_proc(pid, "maps", "read the memory map").splitlines():
        if of_file not in line:
            continue
        span, rest = line.split(None, 1)
        left, right = span.split(b"-")
        start, end = int(left, 16), int(right, 16)
        if end <= first or start >= behind:
            continue
        permissions, offset, device, number = rest.split(None, 4)[:4]
        major, minor = device.split(b":")
        identity = FileIdentity(os.makedev(int(major, 16), int(minor, 16)), int(number))
        private, writable = permissions[3:4] == b"p", permissions[1:2] == b"w"
        yield Area(start, end, private, writable, int(offset, 16), identity)


def find_mapping(pid: int, file_identity: tuple[int, int]) -> list[Mapping]:
    """Find where the process maps that file privately, by address.

    Neighbours that only flags separate are merged.

    Call it right after a VMM has loaded: what the VMM maps over a part of the file later (a balloon) is found
    by comparing. `file_identity` is (device, inode), best from `identity_of`.

    Raises `WrongStateError` when the process doesn't map the file, maps it shared (changes are in the file
    then), or maps a part of it twice (the part that the guest sees is unknown then); `VmmError` when the
    process has ended; `UnavailableError` when its map can't be read.
    """
    mappings: list[Mapping] = []
    for area in areas(pid, inode=file_identity[1]):
        if area.identity != file_identity:
            continue
        if not area.private:
            raise WrongStateError(f"process {pid} maps the mem-file shared, not privately")
        length = area.end - area.start
        if mappings and mappings[-1].host_end == area.start and _file_end(mappings[-1]) == area.file_offset:
            before = mappings.pop()
            area = area._replace(start=before.host_start, file_offset=before.file_offset)
            length += before.length_bytes
        mappings.append(
            Mapping(
                HostVirtual(area.start), length, FileOffset(area.file_offset), FileIdentity(*file_identity)
            )
        )
    if not mappings:
        raise WrongStateError(f"process {pid} doesn't map the mem-file")
    for lower, upper in pairwise(sorted(mappings, key=lambda mapping: mapping.file_offset)):
        if _file_end(lower) > upper.file_offset:
            raise WrongStateError(f"process {pid} maps a part of the mem-file twice")
    return mappings


def _file_end(mapping: Mapping) -> int:
    return mapping.file_offset + mapping.length_bytes
