"""What the store keeps of a snapshot. Everything else is in its manifest, or derived from its directory
(I6).
"""

from __future__ import annotations

import msgspec

from ramet.model.record import ProcessRef


class SnapshotRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One snapshot: an immutable capture in a directory of its own, named by `id`.

    `name` is unique among those of one `source`. It is null for the capture that a fork of a running instance
    is made from: nobody can refer to that one, and it goes when the forks are there.
    """

    id: str
    name: str | None
    source: str
    """The id of the instance that was captured, also after that is gone; of an imported one, where it was."""
    source_name: str
    created_at: str
    labels: dict[str, str]
    maker: ProcessRef | None
    """The ramet process that is still writing it; when that has died, the snapshot is deleted. Null: it is
    published.
    """

    @property
    def is_published(self) -> bool:
        """Whether it is whole, and may be used."""
        return self.maker is None

    @property
    def title(self) -> str:
        """Its name as people write it where it has to be told from those of other sources."""
        return f"{self.source_name}/{self.name or self.id}"
