"""A command in a guest as its caller gives it: the types of its words and of its standard input."""

from __future__ import annotations

import os
from typing import Any, Protocol

Word = str | bytes | os.PathLike[str] | os.PathLike[bytes]
"""A word of a command line."""


class Readable(Protocol):
    """An open file, or anything that is read like one: plain or async, binary or text."""

    def read(self, size: int, /) -> Any: ...


Source = bytes | str | Readable
"""The source of a command's standard input."""
