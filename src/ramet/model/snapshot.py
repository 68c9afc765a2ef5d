"""The record of a snapshot in the store. The rest is in its manifest or derived from its directory (I6)."""

from __future__ import annotations

import msgspec

from ramet.model.record import ProcessRef


class SnapshotRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot in the store: an immutable capture in its own directory, named by `id`.

    `name` is unique among the snapshots of a `source`. It is null for the capture that a fork of a running
    instance starts from: no reference can name that capture, and ramet removes it when the forks exist.
    """

    id: str
    name: str | None
    source: str
    """The id of the captured instance, which may be removed, or on another machine for an import."""
    source_name: str
    created_at: str
    labels: dict[str, str]
    maker: ProcessRef | None
    """The ramet process that writes the snapshot; null once it is published. If the process has died, the
    snapshot is deleted.
    """

    @property
    def is_published(self) -> bool:
        """True if the snapshot is complete and may be used."""
        return self.maker is None

    @property
    def title(self) -> str:
        """The name as SOURCE/NAME."""
        return f"{self.source_name}/{self.name or self.id}"
