"""The forks of each instance, as a forest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from ramet.model.schema import Instance, LineageNode


def forest(instances: Iterable[Instance]) -> list[LineageNode]:
    """Return the instances as trees, oldest first. An instance without an existing parent is a root."""
    ordered = sorted(instances, key=lambda instance: (instance.created_at, instance.name))
    known = {instance.id for instance in ordered}
    children: dict[str | None, list[Instance]] = defaultdict(list)
    for instance in ordered:
        children[instance.parent if instance.parent in known else None].append(instance)

    def grow(instance: Instance) -> LineageNode:
        return LineageNode(instance=instance, forks=[grow(child) for child in children[instance.id]])

    return [grow(root) for root in children[None]]
