"""Asking a VMM's program for its version, and comparing versions: by release, which is major and minor."""

from __future__ import annotations

import re
from typing import Final

import anyio

from ramet.errors import UnavailableError

LIMIT_S: Final = 20.0
"""How long a program may take to tell."""


def release(version: str) -> tuple[int, int]:
    """Major and minor of `1.12.1`."""
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


async def ask_version(
    name: str, binary: str, pattern: str, *, oldest: tuple[int, int], install: str, setting: str
) -> str:
    """What `binary --version` says, by the first group of `pattern`.

    Raises `UnavailableError` when it can't be run or doesn't end within `LIMIT_S` (`install` is the hint
    then), isn't the program `name`, or is older than `oldest` (`setting` names where a newer one is given).
    """
    try:
        with anyio.fail_after(LIMIT_S):
            result = await anyio.run_process([binary, "--version"], check=True)
    except TimeoutError as error:
        raise UnavailableError(
            f"{name} ({binary}) didn't tell its version within {LIMIT_S:g} s", hint=install
        ) from error
    except Exception as error:
        raise UnavailableError(f"{name} ({binary}) can't be run: {error}", hint=install) from error
    match = re.search(pattern, result.stdout.decode(errors="replace"))
    if match is None or release(match[1]) < oldest:
        found = match[1] if match else "of an unknown version"
        raise UnavailableError(
            f"{name} ({binary}) is {found}: ramet needs {oldest[0]}.{oldest[1]} or newer",
            hint=f"set {setting} to a newer one",
        )
    return match[1]
