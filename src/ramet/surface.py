"""The mark of the names that `import ramet` gives.

`ramet.__all__` has the same names; a test compares them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T", bound=type | Callable[..., Any])


def exported(thing: T) -> T:
    """Mark a class or a function that users import from `ramet`: its `__module__` says so.

    A decorator. Representations, tracebacks and pickles then name `ramet`, wherever the class is defined, and
    a class may move. A module whose exported classes have fields has no `from __future__ import annotations`,
    unless their annotations are built-in types: as text they would be looked up in `ramet`, which has no
    `Literal`.
    """
    thing.__module__ = "ramet"
    return thing
