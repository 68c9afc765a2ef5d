"""Names and references: legal names, free names, and the resolution of a reference."""

from __future__ import annotations

import difflib
import re
import secrets
from collections.abc import Iterable, Sequence
from typing import Final, Protocol, TypeVar

from ramet.errors import NotFoundError, UsageError

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}", re.IGNORECASE | re.ASCII)
_MOST_CHARACTERS: Final = 63
"""The name is also the guest's hostname (RFC 1123, section 2.1, with RFC 1035's labels)."""
ID_DIGITS: Final = 12
_SHORTEST_PREFIX: Final = 4

_ADJECTIVES: Final = [
    "amber",
    "brisk",
    "calm",
    "clear",
    "eager",
    "fresh",
    "keen",
    "lively",
    "mellow",
    "noble",
    "quiet",
    "rapid",
    "sunny",
    "tidy",
    "vivid",
    "warm",
]
_PLANTS: Final = [
    "aspen",
    "bamboo",
    "birch",
    "clover",
    "fern",
    "grape",
    "hazel",
    "iris",
    "ivy",
    "lilac",
    "maple",
    "mint",
    "moss",
    "poplar",
    "sedge",
    "willow",
]


class Named(Protocol):
    """Anything with an id and a name."""

    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...


NamedT = TypeVar("NamedT", bound=Named)


def check_name(name: str) -> str:
    """Return `name` if it is legal.

    A legal name has 1 to 63 letters, digits, `-`, `_` or `.`, and begins with a letter or digit. Raises
    `UsageError` otherwise.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is not a legal name",
            hint="use 1 to 63 letters, digits, '-', '_' or '.', beginning with a letter or digit",
        )
    return name


def new_id() -> str:
    """Return a fresh instance id: 12 hex digits."""
    return secrets.token_hex(ID_DIGITS // 2)


def invent_name(taken: Iterable[str]) -> str:
    """Invent a name that isn't in `taken`, such as `brisk-aspen`."""
    used = set(taken)
    for _ in range(64):
        name = f"{secrets.choice(_ADJECTIVES)}-{secrets.choice(_PLANTS)}"
        if name not in used:
            return name
    return f"{name}-{secrets.token_hex(3)}"


def fork_names(count: int, *, name: str | None, source: str, taken: Iterable[str]) -> list[str]:
    """Return the names of `count` forks: `X`, or `X-1 … X-N`, or the source's name with free numbers.

    A name that the caller wants is returned even if it is taken: the store then refuses it. Without a name,
    numbers that are taken are skipped, and a source's name that is too long with a number is cut short.
    Raises `UsageError` for a name that isn't legal, with its number.
    """
    if name is not None:
        check_name(name if count == 1 else f"{name}-{count}")
        return [name] if count == 1 else [f"{name}-{number}" for number in range(1, count + 1)]
    used = set(taken)
    names: list[str] = []
    number = 0
    while len(names) < count:
        number += 1
        end = f"-{number}"
        if (candidate := f"{source[: _MOST_CHARACTERS - len(end)]}{end}") not in used:
            names.append(candidate)
    return names


def resolve(reference: str, candidates: Sequence[NamedT]) -> NamedT:
    """Return the candidate that `reference` names.

    The order is: exact name, id, unique first digits of an id (at least 4). Raises `NotFoundError`, with near
    misses in its hint; `UsageError` when the first digits fit several ids.
    """
    for candidate in candidates:
        if candidate.name == reference:
            return candidate
    for candidate in candidates:
        if candidate.id == reference:
            return candidate
    if len(reference) >= _SHORTEST_PREFIX:
        matches = [c for c in candidates if c.id.startswith(reference)]
        if len(matches) == 1:
            return matches[0]
        if matches:
            names = ", ".join(f"{c.id} ({c.name})" for c in matches)
            raise UsageError(
                f"{reference!r} is the beginning of several ids: {names}", hint="give more digits"
            )
    near = difflib.get_close_matches(reference, [c.name for c in candidates], n=1)
    raise NotFoundError(
        f"no instance {reference!r}",
        hint=f"did you mean {near[0]}?" if near else "`ramet ps -a` lists all instances",
    )
