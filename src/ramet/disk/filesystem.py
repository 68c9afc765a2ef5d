"""A filesystem on a new data disk, made on the host: the guest only has to mount it.

ext4 with a journal, so that a disk whose VMM was killed, or that was frozen under its guest, is whole again
when it is next mounted. All its features are named here, so a host's mke2fs.conf makes no difference.

Source: mke2fs(8); ext4(5).
"""

from __future__ import annotations

import os
import struct
import uuid
from pathlib import Path
from typing import Final

from ramet.errors import FilesystemError
from ramet.programs import Program
from ramet.system import outside
from ramet.system.files import filesystem_errors, new_file
from ramet.units import MIB

_PROGRAM: Final = "mke2fs"
_INSTALL: Final = "install the package e2fsprogs, or leave the path out (--disk SIZE) for a disk without one"
_SUPERBLOCK_AT: Final = 1024
_SUPERBLOCK: Final = struct.Struct("<56xHH44x16s")
"""s_magic at 0x38, s_state at 0x3A, s_uuid at 0x68."""
_TIMEOUT_S: Final = 60
# What Linux 4.x can mount. No resize_inode: its reserved blocks would take space in every disk.
_FEATURES: Final = (
    "none,has_journal,extent,huge_file,flex_bg,metadata_csum,64bit,dir_nlink,extra_isize,sparse_super,"
    "large_file,filetype,dir_index,ext_attr"
)
# A new file is all zeros, so nothing has to be zeroed, and the agent's mount (noinit_itable) doesn't let the
# guest do it later either. Bitmaps and tables lie together: few clusters of a qcow2 file.
_OPTIONS: Final = "lazy_itable_init=1,lazy_journal_init=1,nodiscard,packed_meta_blocks=1"
_BLOCK_BYTES: Final = 4096
_INODE_BYTES: Final = 256
_BYTES_AN_INODE: Final = 16384
_JOURNAL_MIB: Final = (4, 64)
_JOURNAL_SHARE: Final = 16
"""The journal is a sixteenth of the disk between those two: it goes round, so a fork that writes much has it
all in its own file.
"""


def find_mke2fs() -> str:
    """Find the program that makes filesystems. Raises `UnavailableError` naming the package that has it."""
    # An ordinary user's PATH doesn't have the administrator's programs.
    return Program("mke2fs", _PROGRAM, hint=_INSTALL, beside=("/usr/sbin", "/sbin")).path()


def make_ext4(path: Path, size_bytes: int, identity: uuid.UUID) -> None:
    """Make `path`, a sparse file of `size_bytes` with an empty ext4 filesystem, whose UUID is `identity`.

    Two of the same size and identity differ in nothing but the time at which they were made. Not synced.
    Raises `UnavailableError` when there is no mke2fs, else `FilesystemError`; there is no file then.
    """
    program = find_mke2fs()
    smallest, largest = _JOURNAL_MIB
    journal_mib = min(max(size_bytes // _JOURNAL_SHARE // MIB, smallest), largest)
    arguments = [
        *(program, "-q", "-F", "-t", "ext4", "-b", str(_BLOCK_BYTES), "-I", str(_INODE_BYTES), "-m", "0"),
        *("-i", str(_BYTES_AN_INODE), "-J", f"size={journal_mib}", "-U", str(identity), "-O", _FEATURES),
        *("-E", f"{_OPTIONS},hash_seed={identity}", path.name),
    ]
    environment = {"PATH": os.defpath, "LC_ALL": "C", "MKE2FS_CONFIG": os.devnull}
    with filesystem_errors("make", path), new_file(path) as descriptor:
        os.ftruncate(descriptor, size_bytes)
        try:
            made = outside.run(arguments, cwd=path.parent, environment=environment, limit_s=_TIMEOUT_S)
        except TimeoutError:
            raise FilesystemError(f"can't make the filesystem of {path}: mke2fs hangs") from None
        if made.failed or not _is_whole(descriptor, identity):
            raise FilesystemError(
                f"can't make the filesystem of {path}: {made.last_words or 'mke2fs left it unfinished'}",
                hint="the message of mke2fs names the cause; if it is space, free some",
            )


def _is_whole(descriptor: int, identity: uuid.UUID) -> bool:
    """Tell whether mke2fs finished: it writes the superblock last, and marks it as valid only then.

    Sources: libext2fs, `ext2fs_flush2`; for the superblock's fields ext4's documentation, "The Super Block".
    """
    block = os.pread(descriptor, _SUPERBLOCK.size, _SUPERBLOCK_AT)
    if len(block) != _SUPERBLOCK.size:
        return False
    magic, state, its_identity = _SUPERBLOCK.unpack(block)
    return (magic, state, its_identity) == (0xEF53, 1, identity.bytes)
