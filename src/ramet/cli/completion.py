"""Completion of references in a shell: reads the names in the home's database and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ramet.api.names import Names


def complete_reference(incomplete: str) -> list[tuple[str, str]]:
    """Names of instances that begin so, each with its state; ids when no name does. Silent about every
    trouble.
    """
    return [] if (names := _known()) is None else _instances(names, incomplete)


def complete_snapshot(incomplete: str) -> list[tuple[str, str]]:
    """Snapshots, SOURCE/NAME, that begin so; ids when none does."""
    return [] if (names := _known()) is None else _snapshots(names, incomplete)


def complete_source(incomplete: str) -> list[tuple[str, str]]:
    """Sources of forks: instances, then snapshots."""
    if (names := _known()) is None:
        return []
    return _instances(names, incomplete) + _snapshots(names, incomplete)


def _instances(names: Names, incomplete: str) -> list[tuple[str, str]]:
    matches = [(vm.name, vm.state) for vm in names.instances if vm.name.startswith(incomplete)]
    return matches or [(vm.id, vm.name) for vm in names.instances if vm.id.startswith(incomplete)]


def _snapshots(names: Names, incomplete: str) -> list[tuple[str, str]]:
    matches = [(each.title, "snapshot") for each in names.snapshots if each.title.startswith(incomplete)]
    return matches or [(each.id, each.title) for each in names.snapshots if each.id.startswith(incomplete)]


def _known() -> Names | None:
    try:
        from ramet.api.names import read_names

        return read_names()
    except Exception:
        return None  # nothing can be completed then, and a shell's prompt is no place to say why
