"""A snapshot as what compression works on."""

from __future__ import annotations

from contextlib import (
    nullcontext,
)

from ramet.engine.context import Context
from ramet.engine.maintenance.compression import Target
from ramet.engine.origin import Origin
from ramet.engine.snapshots.catalog import origin_of_snapshot, require_published
from ramet.model.snapshot import SnapshotRecord


def of_snapshot(context: Context, row: SnapshotRecord) -> Target:
    """Make the target of a snapshot. `Target.origin` raises `NotFoundError` once the snapshot is gone."""

    def origin() -> Origin:
        return origin_of_snapshot(context, require_published(context, row.id))

    return Target(row.id, row.name or row.id, origin, nullcontext, may_compact_disks=True)
