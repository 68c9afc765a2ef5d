"""Arguments and options that several verbs have in common."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Annotated

import typer

from ramet.cli.completion import complete_reference, complete_source
from ramet.errors import UsageError
from ramet.text import as_typed, visible

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]

Reference = Annotated[
    str,
    typer.Argument(
        metavar="REF",
        autocompletion=complete_reference,
        help="An instance: its name, its id, or the first 4 or more digits of the id.",
        show_default=False,
    ),
]

Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        autocompletion=complete_source,
        help="An instance, or a snapshot: SOURCE/NAME, NAME where only one has it, or its id.",
        show_default=False,
    ),
]

References = Annotated[
    list[str],
    typer.Argument(
        metavar="REF...",
        autocompletion=complete_reference,
        help="Instances: names, ids, or the first 4 or more digits of an id.",
        show_default=False,
    ),
]

Command = Annotated[
    list[str] | None,
    typer.Argument(metavar="CMD...", help="The program and its arguments.", show_default=False),
]


def pairs(texts: Iterable[str], *, what: str) -> dict[str, str]:
    """`key=value` texts as a dictionary. Raises `UsageError` for one without `=`."""
    pairs = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise UsageError(f"{text!r} is not a {what}", hint="write it as key=value")
        if visible(text) != text:
            raise UsageError(
                f"the {what} {visible(text)} is no text in this locale's {sys.getfilesystemencoding()}",
                hint="set LC_ALL to the locale in which it was typed",
            )
        pairs[key] = value
    return pairs


def environment(texts: Iterable[str]) -> dict[str, str]:
    """`--env`: `K=V`, or `K` alone for what it is here (nothing when it isn't set)."""
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
    """CMD without the `--` that may stand before it, as it was typed."""
    command = list(map(as_typed, words or []))
    return command[1:] if command[:1] == ["--"] else command
