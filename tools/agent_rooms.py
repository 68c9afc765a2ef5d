"""The rooms of the guest programs' C and the order that their `#include`s keep.

A *part* is a source file and its header, named by their path without a suffix (`link/wire`). A part's room is
its folder; a file on top is a room by itself. `python tools/agent_rooms.py` prints the figures.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import ramet.guest

AGENT: Final = Path(ramet.guest.__file__).parent / "agent"
PROBE: Final = AGENT.parent / "probe"
FLOORS: Final = (("main",), ("requests",), ("session",), ("exec", "identity"), ("link",), ("init", "loop"))
"""The agent's rooms from top to bottom. A room includes its own files and those of the floors below."""
SHARED: Final = frozenset({"link/message", "link/wire"})
"""The parts of the agent that the probe shares."""

_INCLUDE: Final = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)

Arrow = tuple[str, str]
"""A part and a part that it needs."""


def sources(directory: Path) -> dict[str, str]:
    """The text of each C file below `directory`, by its path from there."""
    return {
        str(path.relative_to(directory)): path.read_text()
        for pattern in ("*.c", "*.h")
        for path in sorted(directory.rglob(pattern))
    }


def part(name: str) -> str:
    """The part that a file belongs to."""
    return name.rpartition(".")[0]


def room(name: str) -> str:
    """The room of a part."""
    return name.partition("/")[0]


def arrows(files: Mapping[str, str]) -> set[Arrow]:
    """An arrow for each part that another one includes."""
    edges = {(part(name), part(target)) for name, text in files.items() for target in _INCLUDE.findall(text)}
    return {(by, target) for by, target in edges if by != target}


def upward(edges: Iterable[Arrow]) -> list[Arrow]:
    """The arrows to a floor above, or to another room of the same floor.

    Raises `KeyError` for a room that isn't on any floor.
    """
    floor = {name: number for number, rooms in enumerate(FLOORS) for name in rooms}
    return sorted(
        (by, target)
        for by, target in edges
        if room(by) != room(target) and floor[room(target)] <= floor[room(by)]
    )


def circles(edges: Iterable[Arrow]) -> list[list[str]]:
    """The groups of parts that need each other, each sorted."""
    needs: dict[str, set[str]] = {}
    for by, target in edges:
        needs.setdefault(by, set()).add(target)
    reached = {name: _reached(name, needs) for name in needs}
    groups = {
        tuple(sorted(other for other in reached[name] if name in reached.get(other, ())))
        for name in needs
        if name in reached[name]
    }
    return [list(group) for group in sorted(groups)]


def _reached(name: str, needs: Mapping[str, set[str]]) -> set[str]:
    reached: set[str] = set()
    waiting = list(needs.get(name, ()))
    while waiting:
        other = waiting.pop()
        if other not in reached:
            reached.add(other)
            waiting += needs.get(other, ())
    return reached


def report() -> str:
    """The figures of the agent and of the probe, a line each."""
    lines = []
    for title, directory in (("agent", AGENT), ("probe", PROBE)):
        files = sources(directory)
        edges = arrows(files)
        parts = {part(name) for name in files}
        figures = f"{len(parts)} parts, {len(edges)} arrows, {len(circles(edges))} circles"
        if directory == AGENT:
            figures += f", {len(upward(edges))} upward, {len({room(name) for name in parts})} rooms"
        longest = max((text.count("\n"), name) for name, text in files.items())
        lines.append(f"{title}: {figures}, longest file {longest[1]} with {longest[0]} lines")
    return "\n".join(lines)


if __name__ == "__main__":
    print(report())
