"""Bounds of what a layer may announce. A layer comes from a stranger; one beyond a bound is damaged.

Sources: limits.h(0p) and path_resolution(7) for names, `linux/limits.h` for attributes, mknod(2) and
`linux/kdev_t.h` for device numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ramet.units import GIB, KIB, MIB

NAME_BYTES: Final = 255
"""NAME_MAX: the longest name in a directory, in EROFS as in Linux."""
LINK_BYTES: Final = 4095
"""PATH_MAX without its end: the longest target of a symbolic link."""
FILE_BLOCK_BYTES: Final = 4096
"""A page of every guest and a block of every image."""
DEVICE_MAJOR_BITS: Final = 12
DEVICE_MINOR_BITS: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds per layer; `total_entries`, `metadata_bytes` and `walk_steps` bound the whole image."""

    unpacked_bytes: int = 64 * GIB
    """Bytes of the decompressed tar archive."""
    content_bytes: int = 64 * GIB
    """Bytes of all regular files, the holes of sparse ones included."""
    file_blocks: int = 2**31
    """4 KiB blocks of one file: a chunk of EROFS is no larger (format 31, `erofs_fs.h`)."""
    header_bytes: int = 1 * MIB
    """Bytes of one extended header, and of all that come before one entry."""
    sparse_extents: int = 64 * KIB
    """Pieces of data of one sparse file."""
    total_entries: int = 2_000_000
    metadata_bytes: int = 512 * MIB
    """Names, link targets and attributes of the whole image's entries: all of them are in memory at once."""
    path_bytes: int = 4096
    """PATH_MAX, for a whole name in the archive."""
    depth: int = 1024
    """Directories above one another in the merged tree."""
    link_hops: int = 255
    """Symbolic links followed on the way to one entry."""
    walk_steps: int = 200_000_000
    """Components of names walked through for the whole image."""
    xattrs: int = 512
    """Extended attributes of one file."""
    xattr_bytes: int = 128 * KIB
    """Names and values of one file's attributes (EROFS holds 256 KiB beside an inode)."""
    xattr_value_bytes: int = 65_535
    """The value of an attribute: EROFS has 16 bits for its size; Linux allows one byte more."""


DEFAULT_LIMITS: Final = Limits()
