"""Arguments and options that several verbs share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Annotated

import typer

from ramet.cli.completion import complete_reference, complete_references, complete_source
from ramet.errors import UsageError
from ramet.text import as_typed, visible

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]

Reference = Annotated[
    str,
    typer.Argument(
        metavar="REF",
        autocompletion=complete_reference,
        help="An instance: its name, its id, or 4 or more first digits of the id.",
        show_default=False,
    ),
]

Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        autocompletion=complete_source,
        help="An instance or a snapshot: its name or id; SOURCE/NAME for a snapshot.",
        show_default=False,
    ),
]

References = Annotated[
    list[str],
    typer.Argument(
        metavar="REF...",
        autocompletion=complete_references,
        help="Instances: names, ids, or 4 or more first digits of an id.",
        show_default=False,
    ),
]

Command = Annotated[
    list[str] | None,
    typer.Argument(metavar="CMD...", help="The program and its arguments.", show_default=False),
]


def pairs(texts: Iterable[str], *, what: str) -> dict[str, str]:
    """Parse `key=value` texts. Raises `UsageError` for a text without `=`."""
    pairs = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise UsageError(f"{text!r} is not a {what}", hint="write it as key=value")
        if visible(text) != text:
            raise UsageError(
                f"the {what} {visible(text)} isn't text in this locale's {sys.getfilesystemencoding()}",
                hint="set LC_ALL to the locale in which it was typed",
            )
        pairs[key] = value
    return pairs


def environment(texts: Iterable[str]) -> dict[str, str]:
    """Parse the texts of `--env`: `K=V`, or `K` alone for its value here, if it has one."""
    pairs = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key:
            raise UsageError(f"{text!r} is not a variable", hint="write it as NAME=value, or NAME alone")
        if equals:
            pairs[as_typed(key)] = as_typed(value)
        elif key in os.environ:
            pairs[as_typed(key)] = as_typed(os.environ[key])
    return pairs


def without_separator(words: Iterable[str] | None) -> list[str]:
    """Return the words of CMD as they were typed, without a `--` before them."""
    command = list(map(as_typed, words or []))
    return command[1:] if command[:1] == ["--"] else command
