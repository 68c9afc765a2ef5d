"""The argument boundary of the public classes: one table of checks, by parameter, with one meaning each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

from ramet import arguments
from ramet.arguments import Check, few, flag, optional
from ramet.errors import UsageError
from ramet.units import parse_size

F = TypeVar("F", bound=Callable[..., Any])

_MOST_ITEMS: Final = 256
"""The limit of any list. `model.disks` knows how many disks a guest can have."""


def _size(value: Any, what: str) -> int:
    """Return bytes from a number, or from a text such as `256M`."""
    if isinstance(value, str):
        return parse_size(arguments.text(value, what))
    if isinstance(value, float):
        raise UsageError(
            f"{what}: {arguments.shown(value)}", hint="write it as 256M or 2G, or in whole bytes"
        )
    return arguments.count(value, what)


def _disk(value: Any, what: str) -> str | int:
    return arguments.text(value, what) if isinstance(value, str) else _size(value, what)


def _signal(value: Any, what: str) -> str:
    """Return a signal as a text: a name, as images write them, or a number."""
    if isinstance(value, str):
        return arguments.text(value, what)
    return str(arguments.signal_number(value, what))


CHECKS: Final[dict[str, Check]] = {
    **arguments.COMMAND_CHECKS,
    "accel": arguments.text,
    "auto_remove": flag,
    "cold": flag,
    "ca": few(arguments.path, most=_MOST_ITEMS),
    "check": flag,
    "command": optional(few(arguments.kept_word, most=arguments.MOST_WORDS)),
    "console": flag,
    "count": arguments.whole_number,
    "cpus": arguments.whole_number,
    "detach": flag,
    "disk": arguments.text,
    "disks": few(_disk, most=_MOST_ITEMS),
    "driver": arguments.text,
    "entrypoint": optional(few(arguments.kept_word, most=arguments.MOST_WORDS)),
    "everything": flag,
    "file": arguments.path,
    "force": flag,
    "home": optional(arguments.path),
    "idle": flag,
    "image": arguments.kept_text,
    "labels": optional(arguments.labels),
    "level": optional(arguments.whole_number),
    "lost": flag,
    "max_output_bytes": arguments.count,
    "memory": _size,
    "name": optional(arguments.text),
    "of": optional(arguments.text),
    "platform": optional(arguments.text),
    "prepare": flag,
    "progress": optional(arguments.function),
    "pull": arguments.pull_policy,
    "ref": optional(arguments.text),
    "reference": arguments.text,
    "require_shared": flag,
    "return_exceptions": flag,
    "rootfs": optional(arguments.text),
    "share_memory": flag,
    "size": _size,
    "snapshot": optional(arguments.text),
    "source": arguments.path,
    "start_main": flag,
    "stop_signal": optional(_signal),
    "target": arguments.text,
    "vmm": flag,
    "wait": arguments.time_limit,
    "warm": arguments.count,
    "workdir": optional(arguments.kept_path),
}
"""The check of each parameter, by its name."""

_OTHERWISE: Final[dict[str, dict[str, Check]]] = {
    "pool": {"wait": arguments.grace_period},
    "process": {"stdin": flag},
    "import_image": {"name": optional(arguments.kept_text)},
    "run": {"env": optional(arguments.kept_environment), "user": optional(arguments.kept_user)},
    "start_main": {"stdin": flag},
    "stop": {"timeout": arguments.grace_period},
}
"""The checks of methods in which a parameter has another meaning."""


def public(function: F) -> F:
    """Decorate a method that users call: its arguments are checked by `CHECKS`.

    Raises `UsageError` before anything is done.
    """
    return arguments.checked({**CHECKS, **_OTHERWISE.get(function.__name__, {})})(function)
