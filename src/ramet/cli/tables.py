"""Tables and trees for people: they fit a terminal's width, and are whole in a pipe.

A table that is too wide for a terminal gives up its gaps first, then the middle of its longest names (`…`).
Where that isn't enough, each row becomes a block of lines, `HEADER  value`, and nothing is shortened.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ramet.cli import output
from ramet.cli.output import clean, say
from ramet.cli.widths import shorten, width_of

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from ramet.model.schema import Instance, LineageNode, SnapshotInfo

_STATE_STYLES: Final = {
    "running": "green",
    "paused": "yellow",
    "standby": "yellow",
    "template": "cyan",
    "failed": "red",
    "stopped": "dim",
}
_FIGURES: Final = frozenset(
    {
        *("MEMORY", "CPUS", "FORKS", "LINKS", "OWN RAM", "PRIVATE", "PSS", "RSS", "READY", "TOTAL", "CPU"),
        *("SIZE", "DELTA", "OWN"),
        *("QUEUED", "CAPTURE", "PAUSE", "CLONE", "SPAWN", "LOAD", "RESUME"),
    }
)
"""Columns that are aligned to the right."""
_NAMES: Final = frozenset(
    {
        *("NAME", "SOURCE", "PARENT", "HOSTNAME", "FORK", "TIMINGS IN MS", "CONTROLLER"),
        *("IMAGE", "DRIVER", "VERSION", "PATH", "KEY"),
    }
)
"""Columns whose texts a narrow terminal shortens."""
_PROSE: Final = frozenset({"FOUND"})
"""Columns whose texts a narrow terminal breaks into lines."""
_GAP: Final = 2
_SHORTEST_NAME: Final = 8
_SHORTEST_PROSE: Final = 24
_SHORTEST_VALUE: Final = 12
_GUIDE: Final = 4
"""Columns that a level of a tree takes."""


class Layout(NamedTuple):
    """The widths of a table's columns, and the gap between them."""

    widths: list[int]
    gap: int


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write a table, one line per row, or one block per row on a terminal that is too narrow for it."""
    cells = [[clean(str(cell)) for cell in row] for row in rows]
    layout = fit(headers, cells, output.columns())
    if layout is None:
        _blocks(headers, cells)
    else:
        _lines(headers, cells, layout)


def fit(headers: Sequence[str], rows: Sequence[Sequence[str]], columns: int | None) -> Layout | None:
    """Choose the widths with which a table fits `columns`; None where no table does. No limit: None."""
    widths = [max(map(width_of, column)) for column in zip(headers, *rows, strict=True)]
    if columns is None or sum(widths) + _GAP * (len(widths) - 1) <= columns:
        return Layout(widths, _GAP)
    shortest = {
        index: max(width_of(header), _SHORTEST_PROSE if header in _PROSE else _SHORTEST_NAME)
        for index, header in enumerate(headers)
        if header in _PROSE or header in _NAMES
    }
    for gap in (_GAP, 1) if _PROSE.intersection(headers) else (1,):
        tried = list(widths)
        excess = sum(widths) + gap * (len(widths) - 1) - columns
        while excess > 0:
            wide = [index for index, least in shortest.items() if tried[index] > least]
            if not wide:
                break
            longest = max(wide, key=lambda index: tried[index])
            tried[longest] -= 1
            excess -= 1
        if excess <= 0:
            return Layout(tried, gap)
    return None


def _lines(headers: Sequence[str], cells: Sequence[Sequence[str]], layout: Layout) -> None:
    from rich.table import Table
    from rich.text import Text

    mark = _mark()
    drawn = Table(box=None, pad_edge=False, padding=(0, layout.gap, 0, 0), header_style="bold")
    for header, width in zip(headers, layout.widths, strict=True):
        drawn.add_column(
            header,
            justify="right" if header in _FIGURES else "left",
            no_wrap=header not in _PROSE,
            overflow="fold",
            width=width,
        )
    for row in cells:
        shown = [
            cell if header in _PROSE else shorten(cell, width, mark=mark)
            for header, cell, width in zip(headers, row, layout.widths, strict=True)
        ]
        drawn.add_row(*(Text(cell, style=_STATE_STYLES.get(cell, "")) for cell in shown))
    _show(drawn, sum(layout.widths) + layout.gap * len(layout.widths))


def _blocks(headers: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    """Write each row as lines of a header and a value, with an empty line between rows."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    columns = output.columns()
    assert columns is not None
    if not cells:
        _show(Text("  ".join(headers), style="bold"), columns)
        return
    label = max(map(width_of, headers))
    beside = columns - label - 1 >= _SHORTEST_VALUE
    blocks: list[RenderableType] = []
    for row in cells:
        block = Table.grid(padding=(0, 1, 0, 0))
        if beside:
            block.add_column(width=label, no_wrap=True, style="bold")
        block.add_column(width=columns - label - 1 if beside else columns, overflow="fold")
        for header, cell in zip(headers, row, strict=True):
            value = Text(cell, style=_STATE_STYLES.get(cell, ""))
            if beside:
                block.add_row(header, value)
            else:
                block.add_row(Text.assemble((f"{header} ", "bold"), value))
        blocks += [Text(""), block] if blocks else [block]
    _show(Group(*blocks), columns)


def tree(nodes: Sequence[LineageNode], snapshots: Sequence[SnapshotInfo] = ()) -> None:
    """Write instances by who was forked from whom, each with its snapshots before its forks."""
    from rich.console import Group
    from rich.text import Text
    from rich.tree import Tree

    columns = output.columns()

    def line(kind: str, name: str, rest: Text, depth: int) -> Text:
        room = None if columns is None else columns - _GUIDE * depth - len(kind) - len(rest.plain)
        name = clean(name)
        shown = name if room is None else shorten(name, max(_SHORTEST_NAME, room), mark=_mark())
        return Text.assemble((kind, "dim"), (shown, "bold"), rest, no_wrap=True, overflow="ellipsis")

    def of_instance(instance: Instance, depth: int) -> Text:
        style = _STATE_STYLES.get(str(instance.state), "")
        rest = Text.assemble(f"  {instance.id}  ", (state(instance), style), f"  {age(instance)}")
        return line("", instance.name, rest, depth)

    def extend(branch: Tree, node: LineageNode, depth: int) -> Tree:
        for snapshot in snapshots:
            if snapshot.source == node.instance.id:
                rest = Text(f"  {snapshot.id}  {age(snapshot)}")
                branch.add(line("snapshot ", snapshot.name, rest, depth + 1))
        for fork in node.forks:
            extend(branch.add(of_instance(fork.instance, depth + 1)), fork, depth + 1)
        return branch

    _show(Group(*(extend(Tree(of_instance(root.instance, 0)), root, 0) for root in nodes)), columns)


def fields(document: Any, *, indent: str = "") -> None:
    """Write a shape as indented lines, `name: value`, sizes also in people's words."""
    import msgspec

    from ramet.units import format_bytes

    for key, value in msgspec.to_builtins(document).items():
        name = clean(key)  # a label of an import has any key
        if isinstance(value, dict) and value:
            say(f"{indent}{name}:")
            fields(value, indent=indent + "  ")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            say(f"{indent}{name}:")
            for entry in value:
                say(f"{indent}  -")
                fields(entry, indent=indent + "    ")
        else:
            shown = " ".join(map(str, value)) if isinstance(value, list) else str(value)
            shown = "-" if value in (None, {}, []) else clean(shown)
            if name.endswith("_bytes") and isinstance(value, int):
                shown += f"  ({format_bytes(value)})"
            say(f"{indent}{name}: {shown}")


def _mark() -> str:
    return "…" if output.can_show("…") else ".."


def state(instance: Instance) -> str:
    """Return an instance's state, for people."""
    return str(instance.state) if instance.seen else f"{instance.state} (unseen)"


def age(thing: Instance | SnapshotInfo) -> str:
    """Return the age of an instance or a snapshot in its largest whole unit: `12s`, `3m`, `5h`, `2d`."""
    return age_since(thing.created_at)


def age_since(created_at: str) -> str:
    """Return the time since that moment, as `age` does."""
    try:
        made = datetime.fromisoformat(created_at)
        made = made if made.tzinfo is not None else made.replace(tzinfo=UTC)
    except ValueError:
        return "-"  # an unreadable record stops no listing
    seconds = max(0, int((datetime.now(UTC) - made).total_seconds()))
    for unit, length in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def _show(drawn: RenderableType, width: int | None) -> None:
    """Render, without the spaces that rich pads lines with. Without a width, lines are as long as needed."""
    output.write(output.rendered(drawn, width))
