"""Finds the programs of this machine that ramet runs. No other module does.

A program is named by a setting, or by its name on PATH. Either is resolved once, to an absolute path: ramet
starts programs in the directories of instances, where a relative path would mean another file. `ramet doctor`
asks here too, so it reports the programs that run.
"""

from __future__ import annotations

import functools
import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ramet import config
from ramet.errors import UnavailableError

_SETTINGS: Final = (
    *("RAMET_HOME", "RAMET_CACHE", "RAMET_AGENT", "RAMET_KERNEL"),
    *("RAMET_QEMU", "RAMET_FIRECRACKER", "RAMET_CLOUD_HYPERVISOR"),
)
_MAY_BE_NAMES: Final = frozenset({"RAMET_QEMU", "RAMET_FIRECRACKER", "RAMET_CLOUD_HYPERVISOR"})
"""Settings that may be a name on PATH."""
_ABSENT: Final = "isn't there"
_SHEBANG_BYTES: Final = 256  # BINPRM_BUF_SIZE, linux/binfmts.h


class Program:
    """A program that ramet needs.

    It is `name` on PATH, in the directories `beside`, or what the variable `setting` or `given` says instead.
    `label` is its name for people, `hint` the next step if it is missing.
    """

    def __init__(
        self,
        label: str,
        name: str,
        *,
        hint: str,
        setting: str | None = None,
        given: str | None = None,
        beside: Sequence[Path | str] = (),
    ) -> None:
        self._label = label
        self._name = name
        self.hint = hint
        self._setting = setting
        self._beside = beside
        self._chosen = given or (config.text(setting) if setting else None)
        self._meaning = setting if setting and not given else f"{label}'s program"
        self._path: str | None = None
        if self._chosen is not None and "/" in self._chosen:
            try:
                config.absolute(self._chosen, meaning=self._meaning)  # a relative path means this directory
            except UnavailableError:
                pass  # `path` raises it when the program is needed

    def path(self) -> str:
        """Return the program's absolute path, the same each time while the file can be executed.

        Raises `UnavailableError`, which names the setting, its value and the reason.
        """
        # Each fork asks: of a found program only the permission is checked.
        if self._path is None or not os.access(self._path, os.X_OK, effective_ids=True):
            self._path = self._find()
        return self._path

    def _find(self) -> str:
        if self._chosen is not None and "/" in self._chosen:
            path = str(config.absolute(self._chosen, meaning=self._meaning))
            if why := why_not(path):
                raise self._missing(self._chosen, f"{self._meaning} says {path}, which {why}")
            return path
        name = self._chosen or self._name
        beside = () if self._chosen else self._beside
        unusable: list[str] = []
        for directory in (*search_path(), *map(str, beside)):
            path = f"{directory}/{name}"
            if (why := why_not(path)) is None:
                return path
            if why is not _ABSENT:
                unusable.append(f"{path} {why}")
        says = f"{self._meaning} says {name!r}, and " if self._chosen else ""
        raise self._missing(name, f"{says}{unusable[0] if unusable else f'{name} is not on PATH'}")

    def _missing(self, name: str, why: str) -> UnavailableError:
        hint = self.hint
        if self._chosen is not None and self._setting is not None:
            hint = f"correct or unset {self._setting}; or {hint}"
        return UnavailableError(f"{self._label} ({name}) can't be run: {why}", hint=hint)


def why_not(path: str) -> str | None:
    """Return the reason that a file can't be executed, as the end of a sentence; None when it can be."""
    file = Path(path)
    try:
        kind = file.stat().st_mode
        if stat.S_ISDIR(kind):
            return "is a directory"
        if not stat.S_ISREG(kind):
            return "is no regular file"
        if not os.access(path, os.X_OK, effective_ids=True):
            return "may not be executed"
        interpreter = _interpreter(file)
    except (FileNotFoundError, NotADirectoryError):
        return "is a link to nothing" if file.is_symlink() else _ABSENT
    except (OSError, ValueError) as error:
        return f"can't be looked at: {getattr(error, 'strerror', error)}"
    if interpreter and not os.access(interpreter, os.X_OK, effective_ids=True):
        return f"is a script whose interpreter {interpreter} isn't there"
    return None


def _interpreter(file: Path) -> str | None:
    """Return a script's interpreter (execve(2), "Interpreter scripts"); None for other files."""
    try:
        with file.open("rb", buffering=0) as opened:
            head = opened.read(_SHEBANG_BYTES) or b""
    except PermissionError:
        return None  # it may be executed and not be read
    words = head[2:].split(b"\n")[0].split() if head.startswith(b"#!") else []
    return os.fsdecode(words[0]) if words else None


def search_path() -> tuple[str, ...]:
    """Return PATH's directories, absolute; an empty one is the working directory (POSIX, 8.3).

    A relative directory means the same as long as this process runs. Without a meaning, because the working
    directory is gone, it is left out.
    """
    return _directories(os.environ.get("PATH") or os.defpath)


def _directories(value: str) -> tuple[str, ...]:
    usable = []
    for entry in value.split(os.pathsep):
        if entry.startswith("/"):
            usable.append(entry.rstrip("/"))
        else:
            try:
                usable.append(str(_from_here(entry)))
            except FileNotFoundError:
                continue
    return tuple(usable)


@functools.cache
def _from_here(entry: str) -> Path:
    return Path.cwd() / entry


def python() -> str:
    """Return the interpreter that runs this.

    Raises `UnavailableError` where a program has Python built in.
    """
    why = why_not(sys.executable) if sys.executable else "isn't known"
    if why is not None:
        raise UnavailableError(
            f"Python's own program {sys.executable or ''} {why}".replace("  ", " "),
            hint="set sys.executable to a Python interpreter that has ramet's packages",
        )
    return sys.executable


def environment() -> dict[str, str]:
    """Return this process's environment for a ramet in another directory: no path in it is relative."""
    environment = dict(os.environ)
    for name in _SETTINGS:
        if (value := environment.get(name)) and (name not in _MAY_BE_NAMES or "/" in value):
            try:
                environment[name] = str(config.absolute(value, meaning=name))
            except UnavailableError:
                continue  # the code that needs that setting says so
    environment["PATH"] = os.pathsep.join(search_path())
    return environment
