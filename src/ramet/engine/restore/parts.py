"""The parts of a capture in a new instance's directory: linked, copied or cloned, and checked."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NamedTuple

from ramet.disk.clone import clone_directory
from ramet.disk.volumes import ForkedDisk, files_of, fork_disk
from ramet.drivers.interface import Ability, Driver
from ramet.engine.manifest import (
    MANIFEST_TRIES,
    Manifest,
    check_part,
    is_part_name,
    read_manifest,
)
from ramet.engine.origin import Origin
from ramet.errors import DamagedError, FilesystemError, NotSharedError
from ramet.paths import (
    CONFIG_FILE,
    CONFIRMED_FILE,
    MANIFEST_FILE,
    MEM_FILE,
    ORIGIN_FILE,
)
from ramet.system.files import filesystem_errors
from ramet.system.share import Shared, can_link, link_or_copy
from ramet.units import KIB

_SOURCES_OWN = (MANIFEST_FILE, CONFIG_FILE, ORIGIN_FILE, CONFIRMED_FILE)
"""Files of a capture's directory that mean nothing to an instance that is restored from it."""
_QUICKLY_COPIED_BYTES = 256 * KIB


class ForkOptions(NamedTuple):
    """The permitted ways to get memory.

    `require_shared` makes anything but sharing an error, `share_memory=False` copies on purpose.
    """

    require_shared: bool = False
    share_memory: bool = True


class Parts(NamedTuple):
    """The parts of a capture that a directory has, and the way of each."""

    manifest: Manifest
    memory: Shared
    disks: tuple[ForkedDisk, ...]
    delta_fd: int | None
    """The delta, open; it is closed once it is written into the VMM's memory."""
    bases: tuple[Shared, ...] = ()
    """The way of each part of the container image."""

    def close(self) -> None:
        """Close the open files."""
        if self.delta_fd is not None:
            os.close(self.delta_fd)


def is_quick(origin: Origin, driver: Driver, directory: Path, options: ForkOptions, count: int) -> bool:
    """Tell whether taking the parts `count` times is several system calls each, not worth a thread.

    Memory and disks can be linked into `directory` then, and the rest is small.
    """
    manifest = origin.manifest
    copied = [disk.file for disk in manifest.machine.disks if disk.format == "raw"]
    try:
        return (
            options.share_memory
            and Ability.MAPS_PRIVATELY in driver.abilities
            and sum(manifest.parts[file].facts.allocated_bytes for file in copied) <= _QUICKLY_COPIED_BYTES
            and can_link(origin.directory / manifest.memory.base, directory, count)
        )
    except FilesystemError:
        return False  # it is being compacted, say: `take_parts` finds out


def take_parts(
    origin: Origin, driver: Driver, directory: Path, options: ForkOptions, *, into: bool = False
) -> Parts:
    """Make `directory` with everything that it needs of the capture, and nothing that leads outside (I3).

    Parts are shared, the rest is copied. Blocks: for a worker thread, unless it `is_quick`. `into` uses an
    existing directory; then a capture that is being compacted isn't looked at again.

    Raises `DamagedError`, `FilesystemError`, `NotSharedError`, `NotFoundError`; `directory` may exist then.
    """
    for tries_left in reversed(range(MANIFEST_TRIES)):
        try:
            return _take(origin, driver, directory, options, into=into)
        except (DamagedError, FilesystemError):
            origin.require_there()
            manifest = read_manifest(origin.directory)
            if into or tries_left == 0 or manifest == origin.manifest:
                raise
            # It was compacted meanwhile: the same content, in other files.
            origin = origin._replace(manifest=manifest)
            shutil.rmtree(directory, ignore_errors=True)
    raise AssertionError


def _take(origin: Origin, driver: Driver, directory: Path, options: ForkOptions, *, into: bool) -> Parts:
    source, manifest = origin.directory, origin.manifest
    # What is called as parts are and isn't one is a compaction's, under way or killed on its way.
    skipped = frozenset({*manifest.parts, *_SOURCES_OWN})
    clone_directory(source, directory, skip_rel_paths=skipped, leave_out=is_part_name, into=into)
    directory.chmod(0o700)
    with filesystem_errors("link the manifest into", directory):
        link_or_copy(source / MANIFEST_FILE, directory / ORIGIN_FILE)
    base, delta = manifest.memory.base, manifest.memory.delta
    memory = link_or_copy(
        source / base,
        directory / MEM_FILE,
        share_memory=options.share_memory,
        allow_link=Ability.MAPS_PRIVATELY in driver.abilities,
        why_no_link=f"{driver.name} doesn't map memory privately",
    )
    _require(options, "memory", memory)
    disks = tuple(
        fork_disk(source, directory, disk, share=options.share_memory) for disk in manifest.machine.disks
    )
    for disk in disks:
        _require(options, f"its disk `{disk.disk.name}`", disk)
    modes: dict[str, str] = {base: memory.mode}
    for disk, frozen in zip(disks, manifest.machine.disks, strict=True):
        modes.update(dict.fromkeys(files_of(frozen), disk.mode))
    bases = tuple(link_or_copy(source / base.file, directory / base.file) for base in manifest.machine.bases)
    for base_part, given in zip(manifest.machine.bases, bases, strict=True):
        _require(options, f"its image's part `{base_part.name}`", given)
        modes[base_part.file] = given.mode
    for part in manifest.parts:
        if part != delta and part not in modes:
            modes[part] = link_or_copy(source / part, directory / part).mode
        # A copy may have fewer blocks than its original, so there it is the original that is looked at.
        if modes.get(part) == "shared":
            own = MEM_FILE if part == base else part
            check_part(manifest, directory, part, name=own, capture=source)
        else:
            check_part(manifest, source, part)
    delta_fd = None
    if delta is not None:
        with filesystem_errors("open", source / delta):
            delta_fd = os.open(source / delta, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    return Parts(manifest, memory, disks, delta_fd, bases)


def _require(options: ForkOptions, what: str, given: Shared | ForkedDisk) -> None:
    if options.require_shared and given.mode != "shared":
        raise NotSharedError(
            f"{what} would be {given.mode}, not shared: {given.reason}",
            hint="leave --require-shared out to accept that",
        )
