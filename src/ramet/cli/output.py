"""What goes to standard output and standard error, and the only way there: one JSON document, or tables for
people.

On a terminal tables have colours and fit its width; in a pipe they are plain and complete. Text that a guest
or a user chose can't drive the terminal.
"""

from __future__ import annotations

import io
import os
import re
import select
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING, Any, Literal, cast

from ramet.cli.descriptors import write_all
from ramet.text import encode_json, visible

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer
    from rich.console import Console, ConsoleOptions, RenderableType

    from ramet.model.schema import Instance, LineageNode, SnapshotInfo

_STATE_STYLES = {
    "running": "green",
    "paused": "yellow",
    "standby": "yellow",
    "template": "cyan",
    "failed": "red",
    "stopped": "dim",
}
_FIGURES = frozenset(
    {
        *("MEMORY", "CPUS", "FORKS", "LINKS", "OWN RAM", "PRIVATE", "PSS", "RSS", "READY", "TOTAL", "CPU"),
        *("SIZE", "DELTA", "OWN"),
        *("QUEUED", "CAPTURE", "PAUSE", "CLONE", "SPAWN", "LOAD", "RESUME"),
    }
)
"""Columns that are aligned to the right."""
_PROSE = frozenset({"FOUND"})
"""Columns that a narrow terminal breaks into lines."""
_UNBOUNDED_COLUMNS = 100_000
_COLUMNS, _LINES = 80, 25
"""Of a terminal that doesn't tell its size."""


class Interrupted(BaseException):
    """A signal came while something waited for the reader of a standard stream."""


_writing_to: int | None = None


def is_waiting() -> bool:
    """The main thread is writing to a standard stream and waits for its reader. A signal's handler raises
    `Interrupted` then: nothing else would be heard.

    A stream that takes more isn't waited for: what was written to it counts as said.
    """
    if _writing_to is None:
        return False
    poll = select.poll()  # epoll(7) knows no regular files
    poll.register(_writing_to, select.POLLOUT)
    return not poll.poll(0)


class _Descriptor(io.RawIOBase):
    """A standard stream under Python's text layer: all that this process prints goes through here."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        return self._descriptor

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: Buffer, /) -> int:
        global _writing_to
        view = memoryview(data)
        if threading.current_thread() is not threading.main_thread():
            write_all(self._descriptor, view)  # rich's spinner: signals are the main thread's
            return view.nbytes
        _writing_to = self._descriptor
        try:
            write_all(self._descriptor, view)
        finally:
            _writing_to = None
        return view.nbytes


def take_over() -> None:
    """Put the one way to write under `sys.stdout` and `sys.stderr`: for print, Typer, rich and tracebacks.

    Nothing is buffered, so nothing is left to fail at exit. Text that the locale can't show is replaced. A
    stream that somebody else has put there, as tests do, is left alone.
    """
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None or (stream is getattr(sys, f"__{name}__") and stream.fileno() == descriptor):
            encoding = getattr(stream, "encoding", None) or "utf-8"
            ours = io.TextIOWrapper(
                cast("IO[bytes]", _Descriptor(descriptor)), encoding, "replace", write_through=True
            )
            setattr(sys, name, ours)


def emit(document: Any) -> None:
    """Write one JSON document: on one line, or indented when a person reads it. In UTF-8, in every locale."""
    import msgspec

    data = encode_json(document)
    if is_terminal():
        data = msgspec.json.format(data, indent=2)
    write(data + b"\n")


def is_terminal() -> bool:
    """Whether a person reads standard output."""
    return sys.stdout.isatty()


def say(line: str) -> None:
    """Write a line for people and scripts."""
    write(visible(line) + "\n")


def say_path(path: str) -> None:
    """Write a path: its bytes for scripts, what can be shown of it for people."""
    write(clean(path) + "\n" if is_terminal() else os.fsencode(path) + b"\n")


def write(text: str | bytes) -> None:
    """Write to standard output, at once and whole.

    Raises OSError when it can't be written. Nothing more is then written there.
    """
    try:
        if isinstance(text, bytes):
            sys.stdout.buffer.write(text)
        else:
            sys.stdout.write(text)
        sys.stdout.flush()
    except (OSError, Interrupted):
        silence()
        raise


def silence() -> None:
    """Let what standard output has buffered, and what comes, go nowhere instead of failing once more."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    os.close(devnull)


def warn(line: str) -> None:
    """Write a line to standard error, whatever has become of it."""
    try:
        sys.stderr.write(clean(line, keep_lines=True) + "\n")
        sys.stderr.flush()
    except OSError:
        pass  # nobody is there to read it


def clean(text: str, *, keep_lines: bool = False) -> str:
    """`text` without anything that could drive a terminal."""
    from ramet.text import printable

    harmless = printable(visible(text).encode())
    return harmless if keep_lines else " ".join(harmless.split())


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write a table, a row a line. On a narrow terminal lines are broken, but nothing is left out."""
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for header in headers:
        justify: Literal["left", "right"] = "right" if header in _FIGURES else "left"
        drawn.add_column(header, justify=justify, no_wrap=header not in _PROSE, overflow="fold")
    for row in rows:
        cells = [clean(str(cell)) for cell in row]
        drawn.add_row(*(Text(cell, style=_STATE_STYLES.get(cell, "")) for cell in cells))
    _show(drawn, whole=not _PROSE.intersection(headers))


def state(instance: Instance) -> str:
    """An instance's state, for people."""
    return str(instance.state) if instance.seen else f"{instance.state} (unseen)"


def tree(nodes: Sequence[LineageNode], snapshots: Sequence[SnapshotInfo] = ()) -> None:
    """Instances by who was forked from whom, each with its snapshots before its forks."""
    from rich.console import Group
    from rich.text import Text
    from rich.tree import Tree

    def line(instance: Instance) -> Text:
        style = _STATE_STYLES.get(str(instance.state), "")
        return Text.assemble(
            (instance.name, "bold"), f"  {instance.id}  ", (state(instance), style), f"  {age(instance)}"
        )

    def grow(branch: Tree, nodes: Sequence[LineageNode]) -> Tree:
        for node in nodes:
            extend(branch.add(line(node.instance)), node)
        return branch

    def extend(branch: Tree, node: LineageNode) -> Tree:
        for snapshot in snapshots:
            if snapshot.source == node.instance.id:
                branch.add(
                    Text.assemble(
                        ("snapshot ", "dim"), (snapshot.name, "bold"), f"  {snapshot.id}  {age(snapshot)}"
                    )
                )
        return grow(branch, node.forks)

    _show(Group(*(extend(Tree(line(root.instance)), root) for root in nodes)))


def fields(document: Any, *, indent: str = "") -> None:
    """A shape as indented lines, `name: value`, sizes also in people's words."""
    import msgspec

    from ramet.units import format_bytes

    for name, value in msgspec.to_builtins(document).items():
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


def age(thing: Instance | SnapshotInfo) -> str:
    """How long ago it was made, in the largest whole unit: `12s`, `3m`, `5h`, `2d`."""
    return age_since(thing.created_at)


def age_since(created_at: str) -> str:
    """How long ago that moment was, as `age`."""
    try:
        made = datetime.fromisoformat(created_at)
        made = made if made.tzinfo is not None else made.replace(tzinfo=UTC)
    except ValueError:
        return "-"  # one record that can't be read stops no listing
    seconds = max(0, int((datetime.now(UTC) - made).total_seconds()))
    for unit, length in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


@contextmanager
def working(what: str, *, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Show on a terminal that something takes its time, and how much of it is done where what is yielded is
    told that. Standard output isn't touched.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.text import Text

    # Text: a name with brackets in it is no markup.
    width, height = _size(2)
    with Console(stderr=True, width=width, height=height).status(Text(clean(what))) as status:
        yield lambda done, total: status.update(Text(f"{clean(what)}: {100 * done // max(1, total)} %"))


def _show(drawn: RenderableType, *, whole: bool = True) -> None:
    """Render, without the spaces that rich pads lines with. `whole`: in lines as long as it takes."""
    console = _console()
    if whole:
        console.width = max(console.width, console.measure(drawn, options=_widest(console)).maximum)
    with console.capture() as captured:
        console.print(drawn)
    write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


def _widest(console: Console) -> ConsoleOptions:
    return console.options.update(width=_UNBOUNDED_COLUMNS)


def _console() -> Console:
    from rich.console import Console

    if is_terminal():
        width, height = _size(1)
        return Console(highlight=False, width=width, height=height)
    return Console(highlight=False, color_system=None, width=_UNBOUNDED_COLUMNS, height=_LINES)


def _size(descriptor: int) -> tuple[int, int]:
    """The columns and lines of a terminal. COLUMNS counts if it is a number above 0: rich would take any."""
    try:
        columns, lines = os.get_terminal_size(descriptor)
    except OSError:
        columns = lines = 0
    setting = os.environ.get("COLUMNS", "")
    if re.fullmatch("[0-9]{1,5}", setting) and int(setting) > 0:
        columns = int(setting)
    return columns or _COLUMNS, lines or _LINES
