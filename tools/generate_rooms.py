"""Draws the rooms of `src/ramet` and counts what their order forbids, from the imports themselves.

`generate.py` writes `rooms.md` and `rooms.svg` of `docs/internals` with it. Run by itself it prints a report.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

import agent_rooms

ROOT: Final = Path(__file__).parent.parent
SOURCES: Final = ROOT / "src"
GENERATED: Final = frozenset({"ramet.sync"})

Graph = Mapping[str, frozenset[str]]


class Picture(NamedTuple):
    """One drawing: its floors from top to bottom, and which room imports from which."""

    title: str
    floors: tuple[tuple[str, ...], ...]
    arrows: Graph


@cache
def modules() -> dict[str, Path]:
    """The Python modules by dotted name."""
    found = {}
    for path in sorted((SOURCES / "ramet").rglob("*.py")):
        parts = path.relative_to(SOURCES).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports() -> Graph:
    """Which module imports which, wherever in the file the import stands."""
    return {name: frozenset(_imported(path)) - {name} for name, path in modules().items()}


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "ramet":
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in modules() else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules())


@cache
def includes() -> Graph:
    """Which part of the agent includes from which: a part is a header and its source, `exec/command`."""
    files = agent_rooms.sources(agent_rooms.AGENT)
    edges: dict[str, set[str]] = {agent_rooms.part(name): set() for name in files}
    for importer, imported in agent_rooms.arrows(files):
        edges[importer].add(imported)
    return {name: frozenset(parts) for name, parts in edges.items()}


def _contract(containers: list[str]) -> tuple[tuple[str, ...], ...]:
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    for contract in tool["contracts"]:
        if contract["type"] == "layers" and contract.get("containers") == containers:
            return tuple(tuple(re.findall(r"\w+", layer)) for layer in contract["layers"])
    raise LookupError(f"pyproject.toml has no layers of {containers}")


def python_picture() -> Picture:
    """The packages and ground modules of ramet."""
    return _picture("ramet", _contract(["ramet"]), imports(), lambda module: module.split(".")[1:2])


def engine_picture() -> Picture:
    """The rooms of the engine."""
    inside = {name: targets for name, targets in imports().items() if name.startswith("ramet.engine.")}
    return _picture(
        "ramet/engine",
        _contract(["ramet.engine"]),
        inside,
        lambda module: module.split(".")[2:3] if module.startswith("ramet.engine.") else [],
    )


def agent_picture() -> Picture:
    """The folders of the guest's agent."""
    return _picture(
        "ramet/guest/agent", agent_rooms.FLOORS, includes(), lambda part: [agent_rooms.room(part)]
    )


def _picture(
    title: str,
    floors: tuple[tuple[str, ...], ...],
    graph: Graph,
    room_of: Callable[[str], list[str]],
) -> Picture:
    drawn = {name for floor in floors for name in floor}
    arrows: dict[str, set[str]] = defaultdict(set)
    seen = set()
    for importer, targets in graph.items():
        for room in room_of(importer):
            seen.add(room)
            for imported in targets:
                arrows[room].update(other for other in room_of(imported) if other != room)
    there = tuple(
        floor for floor in (tuple(name for name in floor if name in seen) for floor in floors) if floor
    )
    return Picture(
        title, there, {name: frozenset(arrows[name] & drawn & seen) for name in sorted(seen & drawn)}
    )


def circles(graph: Graph) -> list[list[str]]:
    """The groups of names that import one another, directly or not: strongly connected components."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(graph.get(name, ())):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                groups.append(sorted(group))

    for name in sorted(graph):
        if name not in index:
            visit(name)
    return groups


def upward(picture: Picture) -> list[tuple[str, str]]:
    """The arrows that don't lead to a lower floor."""
    floor_of = {name: number for number, floor in enumerate(picture.floors) for name in floor}
    return [
        (importer, imported)
        for importer, targets in picture.arrows.items()
        for imported in sorted(targets)
        if floor_of[imported] <= floor_of[importer]
    ]


def reduced(arrows: Graph) -> list[tuple[str, str]]:
    """The arrows without those that a longer way says, too."""

    @cache
    def below(name: str) -> frozenset[str]:
        return frozenset(arrows.get(name, ())).union(*(below(other) for other in arrows.get(name, ())))

    return [
        (importer, imported)
        for importer, targets in sorted(arrows.items())
        for imported in sorted(targets)
        if not any(imported in below(other) for other in targets - {imported})
    ]


_BOX_HEIGHT: Final = 30
_FLOOR_HEIGHT: Final = 62
_LETTER: Final = 7.4
_GAP: Final = 16
_MARGIN: Final = 20


def svg(pictures: Iterable[Picture]) -> str:
    """The drawings, one below the other."""
    pieces: list[str] = []
    top, width = 0, 0
    for picture in pictures:
        drawn, right, bottom = _drawn(picture, top)
        pieces += drawn
        top, width = bottom + 30, max(width, right)
    style = (
        "text{font:13px sans-serif;fill:#1a1a1a}.title{font-weight:bold;font-size:15px}"
        "rect{fill:#eef3fa;stroke:#4a6fa5}path{fill:none;stroke:#8a8a8a}"
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {top}">',
            f"<style>{style}</style>",
            f'<rect width="{width}" height="{top}" style="fill:#fff;stroke:none"/>',
            *pieces,
            "</svg>\n",
        ]
    )


def _drawn(picture: Picture, top: int) -> tuple[list[str], int, int]:
    places: dict[str, tuple[float, int, float]] = {}
    widths = [sum(_width(name) + _GAP for name in floor) - _GAP for floor in picture.floors]
    right = max(widths)
    for number, floor in enumerate(picture.floors):
        x = _MARGIN + (right - widths[number]) / 2
        for name in floor:
            places[name] = (x, top + 40 + number * _FLOOR_HEIGHT, _width(name))
            x += _width(name) + _GAP
    pieces = [f'<text class="title" x="{_MARGIN}" y="{top + 22}">{picture.title}</text>']
    for importer, imported in reduced(picture.arrows):
        (x, y, width), (x2, y2, width2) = places[importer], places[imported]
        start, end = x + width / 2, x2 + width2 / 2
        y += _BOX_HEIGHT
        pieces.append(f'<path d="M{start:.0f} {y}C{start:.0f} {y + 24} {end:.0f} {y2 - 24} {end:.0f} {y2}"/>')
    for name, (x, y, width) in places.items():
        pieces.append(f'<rect x="{x:.0f}" y="{y}" width="{width:.0f}" height="{_BOX_HEIGHT}" rx="5"/>')
        pieces.append(f'<text x="{x + width / 2:.0f}" y="{y + 20}" text-anchor="middle">{name}</text>')
    bottom = top + 40 + len(picture.floors) * _FLOOR_HEIGHT
    return pieces, round(right) + 2 * _MARGIN, bottom


def _width(name: str) -> float:
    return max(60.0, len(name) * _LETTER + 20)


def _pictures() -> tuple[Picture, Picture, Picture]:
    return python_picture(), engine_picture(), agent_picture()


def page() -> str:
    """`docs/internals/rooms.md`."""
    lines = [
        "# Rooms",
        "",
        "The packages of `src/ramet`, the rooms of its engine and the folders of the guest's agent,",
        "drawn from their imports and includes. A room imports only from lower floors.",
        "The drawing leaves out an arrow where a chain of others leads to the same room.",
        "`python tools/generate_rooms.py` prints a report with sizes;",
        "`lint-imports` and `tests/unit/guest/test_agent_includes.py` enforce the order.",
        "",
        "![Rooms](rooms.svg)",
        "",
        "| | Circles of files | Imports upward |",
        "| --- | --- | --- |",
    ]
    python, engine, agent = _pictures()
    lines.append(f"| Python | {len(circles(imports()))} | {len(upward(python)) + len(upward(engine))} |")
    lines.append(f"| C | {len(circles(includes()))} | {len(upward(agent))} |")
    for picture in (python, engine, agent):
        lines += ["", f"## {picture.title}", "", "| Floor | Room | Imports from |", "| --- | --- | --- |"]
        for number, floor in enumerate(picture.floors, 1):
            for name in floor:
                lines.append(f"| {number} | `{name}` | {', '.join(sorted(picture.arrows[name])) or '-'} |")
    return "\n".join(lines) + "\n"


def drawing() -> str:
    """`docs/internals/rooms.svg`."""
    return svg(_pictures())


TARGETS: Final = {"docs/internals/rooms.md": page, "docs/internals/rooms.svg": drawing}


def report() -> str:
    """What the rules allow and the code has, with sizes."""
    python, engine, agent = _pictures()
    sizes = {name: len(path.read_text().splitlines()) for name, path in modules().items()}
    largest = sorted((size, name) for name, size in sizes.items() if name not in GENERATED)[-5:]
    lines = [
        f"{len(modules())} modules, {sum(sizes.values())} lines, {sum(map(len, imports().values()))} imports",
        f"circles of modules: {circles(imports())}",
        *(
            f"{picture.title}: {sum(map(len, picture.floors))} rooms on {len(picture.floors)} floors,"
            f" {sum(map(len, picture.arrows.values()))} arrows, upward: {upward(picture)}"
            for picture in (python, engine, agent)
        ),
        f"circles of the agent's files: {circles(includes())}",
        *agent_rooms.report().splitlines(),
        "largest hand-written modules: " + ", ".join(f"{name} {size}" for size, name in reversed(largest)),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(report())
    sys.exit(
        bool(circles(imports()) or circles(includes()) or any(upward(picture) for picture in _pictures()))
    )
