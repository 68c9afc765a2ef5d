"""The filesystem of a directory, and whether several machines may see it.

State can't be kept where they do: this machine can't tell whether another machine's process lives, and
SQLite's write-ahead log has its index in shared memory (sqlite.org/wal.html: "all processes using a database
must be on the same host computer"). The same holds for FUSE, whose server may be anything, sshfs or S3.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from ramet.errors import UnavailableError
from ramet.system.libc import last_error, libc

SEVERAL_MACHINES: Final = {
    0x6969: "NFS",
    0x517B: "SMB",
    0xFF534D42: "CIFS",
    0xFE534D42: "SMB2",
    0x01021997: "9p",
    0x0BD00BD0: "Lustre",
    0x65735546: "FUSE",
    0x00C36400: "Ceph",
    0x5346414F: "AFS",
    0x6B414653: "AFS",
    0x47504653: "GPFS",
    0x7461636F: "OCFS2",
    0x01161970: "GFS2",
    0x19830326: "BeeGFS",
    0x786F4256: "VirtualBox shared folder",
    0xBACBACBC: "VMware shared folder",
    0x7C7C6673: "Parallels shared folder",
    0x20030528: "OrangeFS",
    0xAAD7AAEA: "PanFS",
    0x61636673: "ACFS",
    0x013111A8: "IBRIX",
    0xBEEFDEAD: "StorNext",
    0x73757245: "Coda",
    0x564C: "NCP",
}
"""`f_type` of statfs(2), from <linux/magic.h> and the filesystems' own sources."""

LONGEST_HOME_BYTES: Final = 486
"""SQLite opens no path of more than 495 bytes (3.40.1: `MAX_PATHNAME` 512, of which it needs some for the
names of its other files), and the database's name has 9 of them.
"""
SHORTER: Final = "set RAMET_HOME to a directory with a shorter path"
_STATFS_BYTES: Final = 512  # struct statfs has 120 on 64-bit machines


def filesystem_type(path: Path) -> int:
    """Return `f_type` of the filesystem that `path` is on, see statfs(2). Raises `OSError`."""
    answer = (ctypes.c_long * (_STATFS_BYTES // ctypes.sizeof(ctypes.c_long)))()
    while libc().statfs(os.fsencode(path), answer) != 0:
        error = last_error()
        if not isinstance(error, InterruptedError):
            raise error
    return int(answer[0]) & 0xFFFFFFFF


def nearest_existing(path: Path) -> Path:
    """Return `path`, or the first of its parents that exists and may be looked at."""
    return next(place for place in (path, *path.parents) if os.path.exists(place))  # noqa: PTH110 (no error)


def shared_filesystem(path: Path) -> str | None:
    """Return the kind of filesystem of `path` if several machines may see it, else None.

    The path may not exist yet.
    """
    try:
        return SEVERAL_MACHINES.get(filesystem_type(nearest_existing(path)))
    except OSError:
        return None  # a write there finds out


def require_local(paths: Iterable[Path]) -> None:
    """Raise `UnavailableError` unless all `paths` are on filesystems of this machine alone.

    Writes nothing.
    """
    for path in paths:
        if (kind := shared_filesystem(path)) is not None:
            raise UnavailableError(f"{path} {not_for_state(kind)}", hint=cure(kind))


def too_long(root: Path) -> str | None:
    """Tell why a home can't be at `root`, in words that follow the path; None for a short path."""
    length = len(os.fsencode(root))
    if length <= LONGEST_HOME_BYTES:
        return None
    return f"is a path of {length} bytes, and no database opens below one of more than {LONGEST_HOME_BYTES}"


def require_short(root: Path) -> None:
    """Raise `UnavailableError` when a home can't be at `root` because of its length. Nothing is written."""
    if (why := too_long(root)) is not None:
        raise UnavailableError(f"{root} {why}", hint=SHORTER)


def not_for_state(kind: str) -> str:
    """Tell why state can't be kept there, in words that follow the path."""
    return f"is on {kind}, which other machines may see: instances and their database can't be kept there"


def cure(kind: str) -> str:
    """Return the advice for a home on such a filesystem."""
    advice = (
        "set RAMET_HOME to a directory on a local disk (ext4, XFS, btrfs, tmpfs);"
        " the cache (RAMET_CACHE) and exported snapshots may stay where they are"
    )
    if kind == "FUSE":
        advice += "; in a container on fuse-overlayfs: a volume"
    return advice
