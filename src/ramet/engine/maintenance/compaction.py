"""Compaction: captures and disks become cheaper to use, without a change of their content.

A capture whose delta is large gets a new mem-file, which later forks share instead of each holding the delta;
a capture whose disks lie over many files gets one file per disk. The old files stay until the manifest names
the new files, and their inodes as long as a fork has them (I1). The chain of a living instance is shortened
by its VMM.
"""

from __future__ import annotations

import secrets
from functools import partial
from pathlib import Path

import msgspec

from ramet.disk.chains import chain_of, flatten_chain
from ramet.disk.volumes import files_of, next_overlay
from ramet.drivers.interface import Driver
from ramet.engine.manifest import Manifest, Memory, Part, check_part, is_part_name, parts_there, read_manifest
from ramet.memory.delta import COMPACT_ABOVE_BYTES, compact
from ramet.memory.integrity import digest, facts_of
from ramet.model.record import Disk, Machine
from ramet.paths import MANIFEST_FILE, MEM_FILE
from ramet.progress import report
from ramet.system import threads
from ramet.system.files import TEMPORARY_PREFIX
from ramet.system.publishing import write_durably

SHORTEN_ABOVE_FILES = 16
"""Files below a disk above which its chain is shortened."""


def wants_compaction(manifest: Manifest) -> bool:
    """Tell whether forks of a capture would be cheaper with its delta or its disks' chains merged."""
    return _is_too_large(manifest) or bool(long_chains(manifest.machine))


def _is_too_large(manifest: Manifest) -> bool:
    """Tell whether the delta is to be merged. A compressed capture keeps its delta: merged memory is raw."""
    memory = manifest.memory
    return memory.delta is not None and memory.delta_bytes > COMPACT_ABOVE_BYTES and memory.compressed is None


def long_chains(machine: Machine) -> list[Disk]:
    """List the disks of a machine that lie over too many files."""
    return [disk for disk in machine.disks if len(disk.backing) > SHORTEN_ABOVE_FILES]


async def compact_capture(directory: Path, driver: Driver, *, disks: bool = True) -> bool:
    """Compact a capture, if it needs it, its memory alone without `disks`; False when it doesn't.

    The caller has the job on the capture (`memory_job`): what another call is making there would be removed
    as a leftover. Raises `DamagedError`, `FilesystemError`, `UnavailableError`: the capture is unchanged
    then.
    """
    await driver.version()
    return await threads.run(partial(_compact, directory, driver, disks=disks))


def _compact(directory: Path, driver: Driver, *, disks: bool = True) -> bool:
    manifest = read_manifest(directory)
    _gc(directory, manifest)
    if not (wants_compaction(manifest) if disks else _is_too_large(manifest)):
        return False
    if manifest.arguments is not None and manifest.arguments != driver.arguments(manifest.machine):
        return False  # another ramet's machine: what would be written here is compared before a restore
    for name in parts_there(manifest, directory):
        check_part(manifest, directory, name)  # the result of a damaged part would be published as whole
    report("compacting")
    made: list[str] = []
    try:
        compacted = _with_whole_memory(directory, manifest, made)
        if disks:
            compacted = _with_whole_disks(directory, compacted, made)
        compacted = msgspec.structs.replace(compacted, arguments=driver.arguments(compacted.machine))
        write_durably(directory / MANIFEST_FILE, compacted.encoded())
    except BaseException:
        for name in made:
            (directory / name).unlink(missing_ok=True)
        raise
    _gc(directory, compacted)
    return True


def _gc(directory: Path, manifest: Manifest) -> None:
    """Remove files that have a part's name and aren't parts.

    They are left by a compaction, or by one that was killed on its way.
    """
    for path in directory.iterdir():
        unnamed = is_part_name(path.name) and path.name not in manifest.files
        if unnamed or path.name.startswith(TEMPORARY_PREFIX):
            path.unlink(missing_ok=True)


def _with_whole_memory(directory: Path, manifest: Manifest, made: list[str]) -> Manifest:
    base, delta = manifest.memory.base, manifest.memory.delta
    if delta is None or not _is_too_large(manifest):
        return manifest
    whole = f"{MEM_FILE}-{secrets.token_hex(4)}"
    made.append(whole)
    compact(directory / base, directory / delta, directory / whole, mode=manifest.parts[base].facts.mode)
    parts = {name: part for name, part in manifest.parts.items() if name not in (base, delta)}
    return msgspec.structs.replace(
        manifest, memory=Memory(base=whole), parts={whole: _part(directory / whole), **parts}
    )


def _with_whole_disks(directory: Path, manifest: Manifest, made: list[str]) -> Manifest:
    disks, parts = list(manifest.machine.disks), dict(manifest.parts)
    for disk in long_chains(manifest.machine):
        whole = msgspec.structs.replace(next_overlay(disk, directory), backing=())
        made.append(whole.file)
        flatten_chain(directory, files_of(disk), directory / whole.file)
        for name in files_of(disk):
            del parts[name]
        parts[whole.file] = _part(directory / whole.file)
        disks[disks.index(disk)] = whole
    machine = msgspec.structs.replace(manifest.machine, disks=tuple(disks))
    return msgspec.structs.replace(manifest, machine=machine, parts=parts)


def _part(path: Path) -> Part:
    return Part(facts=facts_of(path), digest=digest(path))


def shortened_disk(directory: Path, disk: Disk) -> Disk:
    """Return a disk with its actual chain, and remove its files that are no longer in the chain.

    The caller keeps others from changing the instance. Raises `DamagedError`, `FilesystemError`.
    """
    if disk.format != "qcow2":
        return disk
    chain = chain_of(directory, disk.file)
    for name in files_of(disk):
        if name not in chain:
            (directory / name).unlink(missing_ok=True)
    return msgspec.structs.replace(disk, backing=chain[:-1])
