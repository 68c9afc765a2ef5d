"""A command in a guest: its words, its standard input, the pieces of its output, and its end."""

import os
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from ramet.surface import exported

Word = str | bytes | os.PathLike[str] | os.PathLike[bytes]
"""A word of a command line."""


@exported
class Readable(Protocol):
    """An open file, or anything that is read like one: plain or async, binary or text."""

    def read(self, size: int, /) -> Any:
        """Return at most `size` bytes or characters, empty at the end, or an awaitable of that."""


Source = bytes | str | Readable
"""The source of a command's standard input."""


@exported
@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a command's output."""

    stream: Literal["stdout", "stderr"]
    data: bytes


@exported
@dataclass(frozen=True, slots=True)
class ExitStatus:
    """The end of a command: an exit code, or a signal. `timed_out` is true if its time ran out."""

    exit_code: int | None
    signal: int | None
    timed_out: bool = False
