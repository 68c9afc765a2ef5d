"""Verify a snapshot: read every part and compare it with its digest."""

from __future__ import annotations

from ramet.engine.context import Context
from ramet.engine.maintenance.decompression import check_compressed, raw_file_kept
from ramet.engine.manifest import MANIFEST_TRIES, Compressed, check_part, parts_there
from ramet.engine.origin import Origin
from ramet.engine.snapshots.catalog import origin_of_snapshot
from ramet.errors import RametError
from ramet.memory.integrity import digest
from ramet.model.schema import PartCheck
from ramet.model.snapshot import SnapshotRecord
from ramet.system import threads


async def verify(context: Context, row: SnapshotRecord) -> list[PartCheck]:
    """Read every part of a snapshot and check it against its digest.

    Returns a result per part; a damaged part raises nothing. Raises `DamagedError` when its manifest can't be
    read.
    """
    for tries_left in reversed(range(MANIFEST_TRIES)):
        origin = origin_of_snapshot(context, row)
        async with raw_file_kept(origin):
            checks = await _checks(origin)
        if all(part.ok for part in checks) or tries_left == 0:
            return checks
        if origin_of_snapshot(context, row).manifest == origin.manifest:
            return checks
        # Compacted, compressed or decompressed meanwhile: the same content, in other files.
    raise AssertionError


async def _checks(origin: Origin) -> list[PartCheck]:
    manifest, directory = origin.manifest, origin.directory
    checks = [
        await threads.run(_check, origin, name, abandon_on_cancel=True)
        for name in parts_there(manifest, directory)
    ]
    if manifest.memory.compressed is not None:
        checks.append(await _check_compressed(origin, manifest.memory.compressed))
    return checks


async def _check_compressed(origin: Origin, packed: Compressed) -> PartCheck:
    problem = None
    try:
        await check_compressed(origin.directory, origin.manifest)
    except RametError as error:
        problem = error.message
    return PartCheck(
        name=packed.file, ok=problem is None, size_bytes=packed.facts.size_bytes, problem=problem
    )


def _check(origin: Origin, name: str) -> PartCheck:
    part = origin.manifest.parts[name]
    try:
        check_part(origin.manifest, origin.directory, name)
        actual = digest(origin.directory / name)
    except RametError as error:
        return PartCheck(name=name, ok=False, size_bytes=part.facts.size_bytes, problem=error.message)
    problem = None if actual == part.digest else f"its content has changed: {actual}, was {part.digest}"
    return PartCheck(name=name, ok=problem is None, size_bytes=part.facts.size_bytes, problem=problem)
