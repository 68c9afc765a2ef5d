"""Checks of the home's filesystem: write access, links, reflinks, space."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Final

from ramet.errors import CannotReflinkError, FilesystemError
from ramet.system import copying, files, filesystems
from ramet.system.doctor.finding import Finding
from ramet.system.filesystems import nearest_existing
from ramet.units import GIB, MIB, format_bytes

_LITTLE_SPACE_BYTES: Final = 2 * GIB
_NO_SPACE_BYTES: Final = 64 * MIB


def home_findings(home: Path, cache: Path) -> list[Finding]:
    """Check the home's filesystem: write access, links, reflinks, space.

    The trial uses files of a temporary directory in the home, or in the nearest parent that exists, and
    removes them again.
    """
    place = nearest_existing(home)
    where = f"{home} ({_filesystem(place)})"
    if (kind := filesystems.shared_filesystem(home)) is not None:
        return [Finding("home", False, f"{where} {filesystems.not_for_state(kind)}", filesystems.cure(kind))]
    if (why := filesystems.too_long(home)) is not None:
        return [Finding("home", False, f"{where} {why}", filesystems.SHORTER)]
    try:
        with tempfile.TemporaryDirectory(prefix=f"{files.TEMPORARY_PREFIX}doctor-", dir=place) as directory:
            source = Path(directory, "source")
            source.write_bytes(b"ramet")
            return [
                _home(where, place, cache),
                _hard_links(source, nearest_existing(cache)),
                _reflinks(source),
                _space(place),
            ]
    except OSError as error:
        advice = "set RAMET_HOME to a directory of yours, on a filesystem with free space"
        return [Finding("home", False, f"{where} can't be written: {error.strerror}", advice)]


def _home(where: str, place: Path, cache: Path) -> Finding:
    if place.stat().st_dev == nearest_existing(cache).stat().st_dev:
        return Finding("home", True, where)
    advice = "put RAMET_HOME and RAMET_CACHE on one filesystem, and kernels are linked, not copied"
    return Finding("home", None, f"{where}, another filesystem than the cache's", advice)


def _hard_links(source: Path, cache: Path) -> Finding:
    try:
        os.link(source, source.with_name("link"))
    except OSError as error:
        advice = (
            f"forks copy memory here: set RAMET_HOME to a directory on ext4, XFS or btrfs, such as {cache}"
        )
        return Finding("hard-links", None, f"no: {error.strerror}", advice)
    return Finding("hard-links", True, "yes: forks share one mem-file")


def _reflinks(source: Path) -> Finding:
    try:
        copying.reflink(source, source.with_name("reflink"))
    except (CannotReflinkError, FilesystemError) as error:
        advice = (
            "only what can't be linked is copied; XFS (made with reflink=1) and btrfs have reflinks and make"
            " templates quicker"
        )
        return Finding("reflinks", None, f"no: {error.message}", advice)
    return Finding("reflinks", True, "yes: what can't be linked shares its blocks")


def _space(place: Path) -> Finding:
    facts = os.statvfs(place)
    free_bytes = facts.f_bavail * facts.f_frsize
    fact = f"{format_bytes(free_bytes)} free for this user"
    if facts.f_files and not facts.f_favail:
        return Finding("free-space", False, f"{fact}, but no inode", "remove files from that filesystem")
    if free_bytes >= _LITTLE_SPACE_BYTES:
        return Finding("free-space", True, fact)
    advice = "free some: a template takes what its guest has touched of its RAM, an instance some MiB of logs"
    return Finding("free-space", None if free_bytes > _NO_SPACE_BYTES else False, fact, advice)


def _filesystem(path: Path) -> str:
    """Return the type of the filesystem that holds `path`, from proc(5)'s mountinfo."""
    device = path.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_bytes().decode(errors="replace").split("\n"):
        before, _, after = line.partition(" - ")
        if after and before.split()[2] == wanted:
            return after.split()[0]
    return "unknown filesystem"
