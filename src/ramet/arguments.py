"""Checks of arguments, applied before a function begins. `api.arguments` gives each parameter its check.

`checked` puts a check before each parameter of a function. A check takes a value and the words for it ("count
of fork"), and returns the argument for the function; it raises only `UsageError`.
"""

from __future__ import annotations

import inspect
import operator
import os
import signal as signals
from collections.abc import Callable, Iterable, Mapping
from contextlib import aclosing
from functools import wraps
from types import FunctionType
from typing import Any, Final, TypeVar, cast

from ramet.errors import RametError, UsageError
from ramet.units import parse_time_limit

Check = Callable[[Any, str], Any]
F = TypeVar("F", bound=Callable[..., Any])

MOST_TEXT_BYTES: Final = 4096
"""A name, a reference, a path, a label: Linux's own limit for a path."""
MOST_ENTRIES: Final = 256
"""Labels of one thing."""
MOST_VARIABLES: Final = 4096
MOST_WORDS: Final = 65_536
PULL_POLICIES: Final = ("missing", "never", "always")
_LARGEST_NUMBER: Final = 2**63 - 1
_SHOWN: Final = 60


def checked(checks: Mapping[str, Check]) -> Callable[[F], F]:
    """Make a decorator for methods: `checks` has one check for each parameter but `self`, by name.

    Raises `TypeError` when a parameter has no check: none can be forgotten.
    """

    def decorate(function: F) -> F:
        code = cast(FunctionType, function).__code__
        name = "Host" if function.__name__ == "__init__" else function.__name__
        positional = code.co_varnames[1 : code.co_argcount]
        keywords = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
        words = ""
        if code.co_flags & inspect.CO_VARARGS:
            words = code.co_varnames[code.co_argcount + code.co_kwonlyargcount]
        wanted = [*positional, *keywords, *([words] if words else [])]
        if missing := [parameter for parameter in wanted if parameter not in checks]:
            raise TypeError(f"{function.__qualname__}: there is no check for {', '.join(missing)}")
        labels = {parameter: f"{parameter} of {name}" for parameter in wanted}
        guarded = {parameter: _guarded(checks[parameter]) for parameter in wanted}

        def converted(args: tuple[Any, ...], given: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
            fixed = [
                guarded[parameter](value, labels[parameter])
                for parameter, value in zip(positional, args, strict=False)
            ]
            rest = args[len(positional) :]
            if words:
                if len(rest) > MOST_WORDS:
                    raise UsageError(f"{len(rest)} arguments can't be given to a command")
                fixed += [
                    guarded[words](value, f"argument {number} of {name}")
                    for number, value in enumerate(rest, start=1)
                ]
            else:
                fixed += rest  # too many: the function itself says so
            return fixed, {
                word: guarded[word](value, labels[word]) if word in labels else value
                for word, value in given.items()
            }

        if inspect.iscoroutinefunction(function):

            @wraps(function)
            async def call(self: Any, *args: Any, **given: Any) -> Any:
                fixed, named = converted(args, given)
                return await function(self, *fixed, **named)

        elif inspect.isasyncgenfunction(function):

            @wraps(function)
            async def call(self: Any, *args: Any, **given: Any) -> Any:
                fixed, named = converted(args, given)
                async with aclosing(function(self, *fixed, **named)) as items:
                    async for item in items:
                        yield item

        else:

            @wraps(function)
            def call(self: Any, *args: Any, **given: Any) -> Any:
                fixed, named = converted(args, given)
                return function(self, *fixed, **named)

        call.checks = guarded  # type: ignore[attr-defined]
        return cast(F, call)

    return decorate


def _guarded(check: Check) -> Check:
    """Guard `check` against objects that fail when they are looked at."""

    def guarded(value: Any, what: str) -> Any:
        try:
            return check(value, what)
        except RametError:
            raise
        except Exception as error:
            raise UsageError(f"{what}: {shown(value)} can't be used: {type(error).__name__}") from error

    return guarded


def shown(value: object) -> str:
    """Show a value in a message: its kind and the beginning of Python's text for it."""
    kind = type(value).__name__
    try:
        text = repr(value)
    except Exception:  # somebody else's object may do anything; the message is ours
        return f"a {kind}"
    return f"{kind} {text if len(text) <= _SHOWN else f'{text[:_SHOWN]}…'}"


def text(value: Any, what: str) -> str:
    """Take a text of at most `MOST_TEXT_BYTES` bytes, without NUL."""
    if not isinstance(value, str):
        raise UsageError(f"{what}: {shown(value)}; it takes a text")
    return _plain(value, what)


def _plain(value: str, what: str, *, most_bytes: int = MOST_TEXT_BYTES) -> str:
    if "\0" in value:
        raise UsageError(f"{what}: {shown(value)} has a NUL character in it")
    if len(value) > most_bytes or len(value.encode("utf-8", "surrogatepass")) > most_bytes:
        raise UsageError(f"{what}: {len(value)} characters", hint=f"the most is {most_bytes} bytes")
    return value


def kept_text(value: Any, what: str) -> str:
    """Take a text that goes into a record: it has to be UTF-8, too."""
    return _require_utf8(text(value, what), what)


def _is_utf8(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def optional(check: Check) -> Check:
    """Take None, or what `check` takes."""
    return lambda value, what: None if value is None else check(value, what)


def flag(value: Any, what: str) -> bool:
    """Take a bool, also NumPy's."""
    if isinstance(value, bool):
        return value
    if type(value).__module__ == "numpy" and type(value).__name__ in {"bool", "bool_"}:
        return bool(value)
    raise UsageError(f"{what}: {shown(value)}; it takes True or False")


def whole_number(value: Any, what: str) -> int:
    """Take a whole number, also NumPy's. A bool is none, and neither is a float."""
    if isinstance(value, bool) or type(value).__name__ in {"bool_"}:
        raise UsageError(f"{what}: {shown(value)}; it takes a whole number")
    try:
        number = operator.index(value)
    except Exception:
        raise UsageError(f"{what}: {shown(value)}; it takes a whole number") from None
    if not -_LARGEST_NUMBER <= number <= _LARGEST_NUMBER:
        raise UsageError(f"{what}: a number of {number.bit_length()} bits is too large")
    return number


def count(value: Any, what: str) -> int:
    """Take a whole number that isn't negative."""
    number = whole_number(value, what)
    if number < 0:
        raise UsageError(f"{what}: {number} is negative")
    return number


def time_limit(value: Any, what: str) -> float | None:
    """Take a time limit in seconds: finite and more than 0; None: no limit."""
    return parse_time_limit(value, what=what)


def grace_period(value: Any, what: str) -> float | None:
    """Take a time limit, or 0: no time is given at all."""
    if isinstance(value, int | float) and not isinstance(value, bool) and value == 0:
        return 0.0
    return parse_time_limit(value, what=what)


def word(value: Any, what: str) -> str:
    """Take a word of a command, as `subprocess` does: text, bytes or a path. Bytes arrive unchanged."""
    if isinstance(value, list | tuple):
        raise UsageError(
            f"{what}: {shown(value)}; each word is a separate argument", hint="write it as exec(*words)"
        )
    checked = _decoded(value, what, "commands take str, bytes or paths")
    if "\0" in checked:
        raise UsageError(f"{what}: {shown(checked)} has a NUL character in it, which no program can be given")
    return checked


def _decoded(value: Any, what: str, takes: str) -> str:
    try:
        plain = os.fspath(value)
        return plain.decode("utf-8", "surrogateescape") if isinstance(plain, bytes) else str(plain)
    except Exception:
        hint = f'write "{value}"' if isinstance(value, int | float) and abs(value) < 1e15 else None
        raise UsageError(f"{what}: {shown(value)}; {takes}", hint=hint) from None


def kept_word(value: Any, what: str) -> str:
    """Take a word of a command that goes into a record: it has to be UTF-8, too."""
    return _require_utf8(word(value, what), what)


def kept_path(value: Any, what: str) -> str:
    """Take a path that goes into a record: it has to be UTF-8, too."""
    return _require_utf8(path(value, what), what)


def kept_user(value: Any, what: str) -> str:
    """Take a user that goes into a record: it has to be UTF-8, too."""
    return _require_utf8(user(value, what), what)


def kept_environment(value: Any, what: str) -> dict[str, str]:
    """Take environment variables that go into a record: they have to be UTF-8, too."""
    checked = environment(value, what)
    for name, content in checked.items():
        _require_utf8(name, f"a name in {what}")
        _require_utf8(content, f"{name} in {what}")
    return checked


def _require_utf8(value: str, what: str) -> str:
    if not _is_utf8(value):
        raise UsageError(f"{what}: {shown(value)} isn't text that can be written as UTF-8")
    return value


def pull_policy(value: Any, what: str) -> str:
    """Take the word that says when a registry is asked for an image."""
    if value not in PULL_POLICIES:
        raise UsageError(
            f"{what}: {shown(value)} doesn't say when to ask a registry",
            hint=f"say {', '.join(PULL_POLICIES)}",
        )
    return str(value)


def path(value: Any, what: str) -> str:
    """Take a path: text, bytes or `os.PathLike`, not empty."""
    checked = _plain(_decoded(value, what, "it takes a path"), what)
    if not checked:
        raise UsageError(f"{what}: it is empty", hint="give it a path")
    return checked


def user(value: Any, what: str) -> str:
    """Take a user of the guest: `name`, `uid` or `uid:gid`; a whole number is a uid."""
    if isinstance(value, str):
        checked = _plain(value, what)
        if not checked:
            raise UsageError(f"{what}: it is empty", hint="give a name, a uid or uid:gid")
        return checked
    return str(count(value, what))


def mapping(value: Any, what: str, *, most: int) -> list[tuple[Any, Any]]:
    """Take a mapping of at most `most` pairs, and return the pairs."""
    if not isinstance(value, Mapping):
        raise UsageError(f"{what}: {shown(value)}; it takes a mapping", hint='such as {"key": "value"}')
    if len(value) > most:
        raise UsageError(f"{what}: {len(value)} entries", hint=f"the most is {most}")
    return list(value.items())


def labels(value: Any, what: str) -> dict[str, str]:
    """Take labels: text to text, bounded, without control characters in keys."""
    checked: dict[str, str] = {}
    for key, content in mapping(value, what, most=MOST_ENTRIES):
        name = kept_text(key, f"a key in {what}")
        if not name or not name.isprintable() or "=" in name:
            raise UsageError(f"{what}: {shown(name)} can't be the key of a label")
        if isinstance(content, int | float):
            raise UsageError(
                f"{what}: {name}={shown(content)}; a label is a text", hint=f'write "{content!s:.20}"'
            )
        checked[str(name)] = str(kept_text(content, f"{name} in {what}"))
    return checked


def environment(value: Any, what: str) -> dict[str, str]:
    """Take environment variables, as `subprocess` does: names and values are text, bytes or paths."""
    checked: dict[str, str] = {}
    for key, content in mapping(value, what, most=MOST_VARIABLES):
        name = _decoded(key, f"a name in {what}", "variables have names of text")
        if not name or "=" in name or "\0" in name:
            raise UsageError(f"{what}: {shown(name)} can't be the name of an environment variable")
        checked[name] = word(content, f"{name} in {what}")
    return checked


def function(value: Any, what: str) -> Any:
    """Take a callable object."""
    if not callable(value):
        raise UsageError(f"{what}: {shown(value)}; it takes a function")
    return value


def few(check: Check, *, most: int) -> Check:
    """Take a sequence of at most `most` items that `check` takes; a text is no sequence."""

    def checked_all(value: Any, what: str) -> list[Any]:
        if isinstance(value, str | bytes | bytearray | Mapping) or not isinstance(value, Iterable):
            raise UsageError(f"{what}: {shown(value)}; it takes a list", hint="put it into brackets: [...]")
        checked = []
        for number, item in enumerate(value, start=1):
            if number > most:
                raise UsageError(f"{what}: more than {most}", hint=f"the most is {most}")
            checked.append(check(item, f"item {number} of {what}"))
        return checked

    return checked_all


def data(value: Any, what: str) -> bytes:
    """Take bytes, or a text, which is UTF-8."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape") if _escapes_only(value) else _refuse_text(value, what)
    try:
        return bytes(memoryview(value).cast("B"))
    except Exception:
        raise UsageError(f"{what}: {shown(value)}; it takes bytes or a text") from None


def _escapes_only(value: str) -> bool:
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def _refuse_text(value: str, what: str) -> bytes:
    raise UsageError(f"{what}: {shown(value)} isn't text that can be written as UTF-8")


def standard_input(value: Any, what: str) -> Any:
    """Take None, bytes, a text, or a file that is open for reading: anything with `read`."""
    if value is None:
        return None
    if callable(getattr(value, "read", None)):
        return value
    if isinstance(value, int):
        raise UsageError(
            f"{what}: {shown(value)}; it takes bytes, a text or an open file", hint="such as open(path, 'rb')"
        )
    return data(value, what)


def signal_number(value: Any, what: str) -> int:
    """Take a signal by its number, or by its name: `SIGTERM`, `TERM`."""
    if isinstance(value, str):
        name = value.upper()
        known = {**signals.Signals.__members__}
        match = known.get(name) or known.get(f"SIG{name}")
        if match is None:
            raise UsageError(f"{what}: there is no signal {shown(value)}", hint="such as SIGTERM")
        return int(match)
    number = whole_number(value, what)
    if not 1 <= number <= 64:
        raise UsageError(f"{number} is not a signal", hint="there is 1 to 64")
    return number


COMMAND_CHECKS: Final[dict[str, Check]] = {
    "argv": word,
    "cwd": optional(path),
    "env": optional(environment),
    "stdin": standard_input,
    "timeout": time_limit,
    "user": optional(user),
}
"""The checks of a command's parameters, by name."""
