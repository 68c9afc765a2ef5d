"""The only way to standard output and standard error: one JSON document, or text for people.

Colours go to a terminal that shows them, or where the user forces them. Text that a guest or a user chose
can't drive the terminal.
"""

from __future__ import annotations

import io
import os
import re
import sys
import threading
from typing import IO, TYPE_CHECKING, Any, Final, cast

from ramet.cli.descriptors import is_writable, write_all, write_if_ready
from ramet.text import encode_json, visible

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer
    from rich.console import RenderableType

_UNBOUNDED_COLUMNS: Final = 100_000
_COLUMNS, _LINES = 80, 25
"""The size of a terminal that doesn't tell its own."""
_DUMB: Final = frozenset({"", "dumb", "unknown"})
"""Values of TERM for terminals without control sequences."""
_OFF: Final = frozenset({"0", "false"})
_ERASE_LINE: Final = "\r\x1b[K"


class Interrupted(BaseException):
    """A signal came while something waited for the reader of a standard stream."""


_writing_to: int | None = None
_status_line = ""
"""The line that stands on the terminal behind standard error, to be erased before others are written."""


def is_waiting() -> bool:
    """Say whether the main thread waits for the reader of a standard stream.

    A signal's handler then raises `Interrupted`: the event loop isn't running, so it would notice nothing.
    """
    return _writing_to is not None and not is_writable(_writing_to)


class _Descriptor(io.RawIOBase):
    """A standard stream under Python's text layer. Everything this process prints passes through."""

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
            write_all(self._descriptor, view)  # signals are the main thread's
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
    """Write one JSON document in UTF-8, in every locale: one line, or indented on a terminal."""
    import msgspec

    data = encode_json(document)
    if is_terminal():
        data = msgspec.json.format(data, indent=2)
    write(data + b"\n")


def is_terminal() -> bool:
    """Say whether standard output is a terminal."""
    return sys.stdout.isatty()


def say(line: str) -> None:
    """Write a line for people and scripts."""
    write(visible(line) + "\n")


def say_path(path: str) -> None:
    """Write a path: its bytes for scripts, its printable characters for people."""
    write(clean(path) + "\n" if is_terminal() else os.fsencode(path) + b"\n")


def write(text: str | bytes) -> None:
    """Write to standard output, at once and whole.

    Raises `OSError` when that fails. Everything written later is then discarded.
    """
    if _status_line:
        show_status("")
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
    """Discard the buffered text of standard output, and all later text, instead of failing again."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    os.close(devnull)


def warn(line: str) -> None:
    """Write a line to standard error, and ignore a missing reader."""
    if _status_line:
        show_status("")
    try:
        sys.stderr.write(clean(line, keep_lines=True) + "\n")
        sys.stderr.flush()
    except OSError:
        pass  # it has no reader


def clean(text: str, *, keep_lines: bool = False) -> str:
    """Return `text` without anything that could drive a terminal."""
    from ramet.text import printable

    harmless = printable(visible(text).encode())
    return harmless if keep_lines else " ".join(harmless.split())


def wants_colour(*, is_terminal: bool) -> bool:
    """Say whether the text for a stream has colours.

    NO_COLOR, FORCE_COLOR, CLICOLOR_FORCE and CLICOLOR decide, in that order. Without them, a terminal has
    colours unless it is dumb.
    """
    environment = os.environ
    if environment.get("NO_COLOR") or environment.get("FORCE_COLOR", "").lower() in _OFF:
        return False
    if environment.get("FORCE_COLOR") or environment.get("CLICOLOR_FORCE", "0").lower() not in _OFF | {""}:
        return True
    return is_terminal and environment.get("TERM", "") not in _DUMB and environment.get("CLICOLOR") != "0"


def columns() -> int | None:
    """Return the width that standard output has room for; None in a pipe or a file."""
    return _size(1)[0] if is_terminal() else None


def rendered(drawn: RenderableType, width: int | None) -> str:
    """Render for standard output, without the spaces that rich pads lines with. No width: no limit."""
    from rich.console import Console

    colour = wants_colour(is_terminal=is_terminal())
    console = Console(
        highlight=False,
        width=width or _UNBOUNDED_COLUMNS,
        height=_LINES,
        force_terminal=colour,
        color_system="standard" if colour else None,
        no_color=False,
    )
    if width is None:
        widest = console.options.update(width=_UNBOUNDED_COLUMNS)
        console.width = max(1, console.measure(drawn, options=widest).maximum)
    with console.capture() as captured:
        console.print(drawn)
    return "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def can_show(text: str) -> bool:
    """Say whether this locale has all characters of `text`."""
    try:
        text.encode(getattr(sys.stderr, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def has_status_line() -> bool:
    """Say whether standard error is a terminal on which a line can be drawn again and again."""
    return sys.stderr.isatty() and os.environ.get("TERM", "") not in _DUMB


def status_columns() -> int:
    """Return the width that there is for a status line: one less than the terminal's, as for any editor.

    COLUMNS only makes it narrower: a line that wraps can't be erased.
    """
    columns = _size(2)[0]
    try:
        columns = min(columns, os.get_terminal_size(2).columns or columns)
    except OSError:
        pass  # there is no terminal: any width will do
    return max(1, columns - 1)


def show_status(line: str) -> None:
    """Draw the status line in place of the one before; an empty one erases it.

    Does nothing while the terminal takes nothing: nobody waits for a status line. In the background, the
    terminal is somebody else's: nothing is drawn or erased there.
    """
    global _status_line
    shown = clean(line)
    if shown == _status_line:
        return
    if _is_in_background():
        _status_line = ""
    elif _offer(f"{_ERASE_LINE}{shown}"):
        _status_line = shown


def _is_in_background() -> bool:
    """Say whether the terminal behind standard error has another process group in its foreground.

    With `stty tostop` the kernel stops a process that writes from the background, and a guest may be paused.
    """
    try:
        foreground = os.tcgetpgrp(2)
    except OSError:
        return False  # it isn't this process's controlling terminal
    return foreground not in {0, os.getpgrp()}  # 0: a group of another PID namespace


def _offer(text: str) -> bool:
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    return write_if_ready(2, text.encode(encoding, "replace"))


def _size(descriptor: int) -> tuple[int, int]:
    """Return the columns and lines of a terminal. COLUMNS counts if it is a number above 0."""
    try:
        columns, lines = os.get_terminal_size(descriptor)
    except OSError:
        columns = lines = 0
    setting = os.environ.get("COLUMNS", "")
    if re.fullmatch("[0-9]{1,5}", setting) and int(setting) > 0:
        columns = int(setting)
    return columns or _COLUMNS, lines or _LINES
