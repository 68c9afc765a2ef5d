"""Describe snapshots: the shapes that `snapshot ls` and `snapshot inspect` show."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import msgspec

from ramet.engine.context import Context
from ramet.engine.maintenance.memory_jobs import compression_of
from ramet.engine.manifest import MANIFEST_TRIES, Manifest, files_there, read_manifest
from ramet.errors import DamagedError
from ramet.model.schema import SnapshotInfo, SnapshotInspection, SnapshotPart
from ramet.model.snapshot import SnapshotRecord
from ramet.system.files import STAT_BLOCK_BYTES


def describe(context: Context, record: SnapshotRecord) -> SnapshotInfo:
    """Describe a snapshot for `snapshot ls`."""
    return SnapshotInfo(**_fields(context, record, *_read(context, record)))


def _read(context: Context, record: SnapshotRecord) -> tuple[Manifest, dict[str, os.stat_result]]:
    directory = context.home.snapshot(record.id)
    try:
        for tries_left in reversed(range(MANIFEST_TRIES)):
            manifest = read_manifest(directory)
            try:
                return manifest, {
                    name: (directory / name).stat() for name in files_there(manifest, directory)
                }
            except FileNotFoundError:
                if tries_left == 0:
                    raise
                # Perhaps compacted or compressed at this moment.
        raise AssertionError
    except (DamagedError, OSError) as error:
        context.store.snapshots.get(record.id)  # removed meanwhile: nothing is damaged
        if isinstance(error, OSError):
            raise DamagedError(
                f"{error.filename}: {error.strerror}",
                hint=f"`ramet snapshot verify {record.id}` says which of its parts are whole",
            ) from error
        raise


def _fields(
    context: Context, record: SnapshotRecord, manifest: Manifest, facts: dict[str, os.stat_result]
) -> dict[str, Any]:
    forks = Counter(row.snapshot for row in context.store.all())
    occupied = {name: status.st_blocks * STAT_BLOCK_BYTES for name, status in facts.items()}
    return {
        "id": record.id,
        "name": record.name,
        "source": record.source,
        "source_name": record.source_name,
        "driver": manifest.driver,
        "image": manifest.image,
        "directory": str(context.home.snapshot(record.id)),
        "memory_bytes": manifest.machine.memory_bytes,
        "cpus": manifest.machine.cpus,
        "accelerator": manifest.machine.accelerator,
        "generation": manifest.generation,
        "created_at": record.created_at,
        "labels": record.labels,
        "allocated_bytes": sum(occupied.values()),
        "own_bytes": sum(occupied[name] for name, status in facts.items() if status.st_nlink == 1),
        "delta_bytes": manifest.memory.delta_bytes,
        "forks": forks[record.id],
    }


def _part(manifest: Manifest, name: str, status: os.stat_result) -> SnapshotPart:
    facts = manifest.facts_of(name)
    digest = manifest.parts[name if name in manifest.parts else manifest.memory.base].digest
    return SnapshotPart(
        name=name,
        size_bytes=facts.size_bytes,
        allocated_bytes=facts.allocated_bytes,
        links=status.st_nlink,
        digest=digest,
    )


def inspect(context: Context, record: SnapshotRecord) -> SnapshotInspection:
    """Describe a snapshot for `snapshot inspect`."""
    manifest, facts = _read(context, record)
    fields = _fields(context, record, manifest, facts)
    return msgspec.convert(
        {
            **fields,
            "compression": compression_of(context, context.home.snapshot(record.id), manifest),
            "driver_version": manifest.driver_version,
            "kernel_version": manifest.kernel_version,
            "machine_type": manifest.machine.machine_type,
            "cpu_model": manifest.machine.cpu_model,
            "arguments": manifest.arguments or [],
            "parent": manifest.source.parent if manifest.source else None,
            "source_state": manifest.source.state if manifest.source else None,
            "parts": [_part(manifest, name, status) for name, status in facts.items()],
        },
        SnapshotInspection,
        from_attributes=True,
    )
