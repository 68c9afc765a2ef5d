"""Give a fork a mem-file under its own name and, if possible, of the same inode.

A fork depends on no path that it doesn't own (I3), so it never opens its parent's mem-file: it gets a hard
link. If a link is impossible, a reflink shares the blocks on the medium but not the page cache, and a sparse
copy shares nothing. The receipt has the reason for each step down (I4).

Sources: link(2), proc(5) (protected_hardlinks), ioctl_ficlone(2).
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from pathlib import Path
from typing import Final, Literal

import msgspec

from ramet.system.copying import duplicate_into
from ramet.system.files import TEMPORARY_PREFIX, filesystem_errors, new_file, open_regular

ASKED_FOR: Final = "asked for"
_FEWEST_LINKS_ALLOWED: Final = 65_000  # ext4's; others allow more

_CANNOT_LINK: Final = {
    errno.EXDEV: "different filesystem",
    errno.EMLINK: "link limit reached",
    errno.EPERM: "the filesystem or kernel refuses hard links (protected_hardlinks, immutable attribute)",
    errno.EACCES: "the kernel's security policy refuses the hard link",
    errno.EOPNOTSUPP: "the filesystem has no hard links",
    errno.ENOTSUP: "the filesystem has no hard links",
    errno.ENOSYS: "the filesystem has no hard links",
}


class Shared(msgspec.Struct, frozen=True):
    """The way that a file got a second name, the reason for no better way, and the bytes copied."""

    mode: Literal["shared", "reflinked", "copied"]
    reason: str
    bytes_copied: int


def link_or_copy(
    source: Path,
    destination: Path,
    *,
    share_memory: bool = True,
    allow_link: bool = True,
    why_no_link: str = "this file may not be linked",
) -> Shared:
    """Create `destination` from `source`: a hard link, else a reflink, else a hole-preserving copy.

    `allow_link=False` begins at the reflink, for a file that its user would write to; `why_no_link` is the
    reason shown for that. `share_memory=False` copies outright. In every case the mode and the modification
    time are the source's, so the manifest's facts hold for it (blocks can be fewer). Nothing is synced: a
    fork dies with the machine.

    `source` must be a regular file, not a link to one; `destination` must not exist. Raises
    `FilesystemError`; then `destination` is unchanged.
    """
    with filesystem_errors("share", f"{source} as {destination}"):
        steps: list[str] = []
        if not share_memory:
            steps.append(ASKED_FOR)
        elif not allow_link:
            steps.append(f"no hard link: {why_no_link}")
        elif (refusal := _link(source, destination)) is None:
            return Shared("shared", "hard link: one inode, one copy in the page cache", 0)
        else:
            steps.append(f"no hard link: {refusal}")
        with open_regular(source) as origin, new_file(destination) as copy:
            made = duplicate_into(origin, copy, allow_reflink=share_memory)
            facts = os.fstat(origin)
            os.fchmod(copy, stat.S_IMODE(facts.st_mode))
            os.utime(copy, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        if share_memory and made.mode == "copied":
            steps.append(made.reason)
        return Shared(made.mode, "; ".join(steps), made.bytes_copied)


def can_link(source: Path, directory: Path, times: int) -> bool:
    """Tell whether that many links of `source` can be made in `directory`, as far as making one link shows.

    The link is removed. Raises `FilesystemError`.
    """
    trial = directory / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
    with filesystem_errors("share", source):
        if source.lstat().st_nlink + times > _FEWEST_LINKS_ALLOWED or _link(source, trial) is not None:
            return False
        trial.unlink(missing_ok=True)  # another process's recovery may have been quicker
        return True


def _link(source: Path, destination: Path) -> str | None:
    """Make a hard link. Returns None when the link is made, else the reason.

    Raises `OSError` for errors that a copy would meet too.
    """
    # link(2) would give a second name to a FIFO, a device or a symbolic link as readily as to a file.
    if not stat.S_ISREG(source.lstat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    try:
        os.link(source, destination, follow_symlinks=False)
    except OSError as error:
        if (refusal := _CANNOT_LINK.get(error.errno or 0)) is None:
            raise
        return refusal
    return None
