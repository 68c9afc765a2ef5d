"""Arguments and options that several verbs share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Final

import typer

from ramet.cli.completion import complete_reference, complete_references, complete_source
from ramet.errors import UsageError
from ramet.text import as_typed, visible
from ramet.units import KIB

_MOST_ENV_FILE_BYTES: Final = 1024 * KIB

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


def environment_files(files: Iterable[str]) -> dict[str, str]:
    """Read the files of `--env-file`: a variable a line as `environment` has them, as Docker reads them.

    Lines that are empty or begin with `#` are skipped; quotes stay. Raises `UsageError`.
    """
    pairs: dict[str, str] = {}
    for file in files:
        try:
            with Path(file).open("rb") as stream:
                content = stream.read(_MOST_ENV_FILE_BYTES + 1)
        except OSError as error:
            raise UsageError(
                f"can't read the variables in {visible(file)}: {error.strerror or error}"
            ) from error
        if len(content) > _MOST_ENV_FILE_BYTES or b"\0" in content:
            raise UsageError(
                f"{visible(file)} isn't a file of variables", hint="it has a NAME=value per line"
            )
        lines = [line.lstrip() for line in content.removeprefix(b"\xef\xbb\xbf").splitlines()]
        wanted = [os.fsdecode(line) for line in lines if line and not line.startswith(b"#")]
        for text in wanted:
            name = text.partition("=")[0]
            if not name or any(letter.isspace() for letter in name):
                raise UsageError(
                    f"{visible(file)} has a line that is not a variable: {visible(text[:60])!r}",
                    hint="write NAME=value, or NAME alone",
                )
        pairs |= environment(wanted)
    return pairs


def without_separator(words: Iterable[str] | None) -> list[str]:
    """Return the words of CMD as they were typed, without a `--` before them."""
    command = list(map(as_typed, words or []))
    return command[1:] if command[:1] == ["--"] else command
