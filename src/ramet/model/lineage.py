"""Who was forked from whom, as a forest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from ramet.model.schema import Instance, LineageNode


def forest(instances: Iterable[Instance]) -> list[LineageNode]:
    """The instances as trees, oldest first. One whose parent is gone is a root of its own."""
    ordered = sorted(instances, key=lambda one: (one.created_at, one.name))
    known = {one.id for one in ordered}
    children: dict[str | None, list[Instance]] = defaultdict(list)
    for one in ordered:
        children[one.parent if one.parent in known else None].append(one)

    def grow(one: Instance) -> LineageNode:
        return LineageNode(instance=one, forks=[grow(child) for child in children[one.id]])

    return [grow(root) for root in children[None]]
