"""Asking a VMM's program for its version, and comparing versions: by release, which is major and minor."""

from __future__ import annotations

import copy
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple, Self

import msgspec

from ramet import config
from ramet.errors import FilesystemError, UnavailableError
from ramet.programs import Program
from ramet.system import outside
from ramet.system.publishing import write_durably
from ramet.text import visible

LIMIT_S: Final = 20.0
"""Longest time for a program to tell its version."""
_FIRST_PRE_RELEASE: Final = 50
_ELF: Final = b"\x7fELF"
_VERSION: Final = re.compile(r"\d+\.\d+(\.\d+)?([-+][0-9A-Za-z.+-]{1,64})?")


Facts = tuple[int, int, int, int, int]
"""Device, inode, size and both times of change of a file, which differ for other content."""


class _Binary(NamedTuple):
    path: str
    """The path, made `visible`: a key in JSON."""
    facts: Facts


class _Told(msgspec.Struct, frozen=True):
    facts: Facts
    version: str


def release(version: str) -> tuple[int, int]:
    """Major and minor of `1.12.1`, or of `53.0-246-gae44c29`."""
    major, minor = re.split(r"[-+]", version, maxsplit=1)[0].split(".")[:2]
    return int(major), int(minor)


def is_pre_release(version: str) -> bool:
    """Tell whether the version leads to a release: `1.16.1-dev`, or `11.1.90`.

    QEMU numbers its tree between two releases .50, and candidates .90 and up.
    """
    numbers, dash, _ = version.partition("-")
    micro = numbers.partition("+")[0].split(".")[2:]
    return bool(dash) or bool(micro and int(micro[0]) >= _FIRST_PRE_RELEASE)


def is_same_release(version: str, other: str) -> bool:
    """Tell whether a VMM of one version takes the vmstate of the other.

    It does with the same major and minor number. If one of them is a pre-release, only the very same version
    does.
    """
    if is_pre_release(version) or is_pre_release(other):
        return version == other
    return release(version) == release(other)


def _facts(status: os.stat_result) -> Facts:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class ProgramVersion:
    """The version of a driver's program, which is asked again when its file has changed: an upgrade.

    Until then the last answer holds, for callers in the middle of an operation. `pattern`, `oldest` and
    `setting` as in `ask_version`.
    """

    def __init__(
        self, name: str, program: Program, pattern: str, *, oldest: tuple[int, int], setting: str
    ) -> None:
        self._name = name
        self._program = program
        self._pattern = pattern
        self._oldest = oldest
        self._setting = setting
        self._told: str | None = None
        self._told_by: Facts | None = None

    async def ask(self) -> str:
        """Return the version. Costs a stat when nothing has changed. Raises as `ask_version`."""
        path = self._program.path()
        try:
            facts = _facts(os.stat(path))  # noqa: PTH116 - on each fork's path
        except OSError:
            facts = None
        if self._told is None or facts != self._told_by:
            self._told = await ask_version(
                self._name,
                path,
                self._pattern,
                oldest=self._oldest,
                install=self._program.hint,
                setting=self._setting,
            )
            self._told_by = facts
        return self._told

    def known(self) -> str:
        """Return the last answer. Await `ask` before."""
        assert self._told is not None, f"{self._name}'s version has to be asked first"
        return self._told

    def doubt(self) -> None:
        """Ask the program at the next `ask`, also when its file is the same."""
        self._told_by = None

    def taken_for(self, version: str) -> Self:
        """Return a copy whose answer is `version`."""
        made = copy.copy(self)
        made._told = version  # noqa: SLF001 - of this very class
        return made


async def ask_version(
    name: str, binary: str, pattern: str, *, oldest: tuple[int, int], install: str, setting: str
) -> str:
    """Return what `binary --version` says, by the first group of `pattern`.

    An unchanged file's answer comes from a cache: QEMU takes 15 ms, and each `ramet fork` is a new process.
    `binary` is an absolute path (`ramet.programs`).

    Raises `UnavailableError` when the program can't be run or doesn't end within `LIMIT_S` (`install` is the
    hint then), isn't the program `name`, or is older than `oldest` (`setting` names where a newer program is
    given).
    """
    program = _look(binary)
    remembered = _read()
    version: str | None = None
    if (
        program is not None
        and (known := remembered.get(program.path)) is not None
        and known.facts == program.facts
    ):
        version = known.version
    if version is None:
        version = await _ask(name, binary, pattern, install=install)
        if program is not None and version is not None:
            _write({**_read(), program.path: _Told(program.facts, version)})
    if version is None or release(version) < oldest:
        present = version or "of an unknown version"
        raise UnavailableError(
            f"{name} ({binary}) is {present}: ramet needs {oldest[0]}.{oldest[1]} or newer",
            hint=f"set {setting} to a newer one",
        )
    return version


async def _ask(name: str, binary: str, pattern: str, *, install: str) -> str | None:
    """Run the program and return its version by its text, because its exit status may be unknown.

    See `ramet.system.outside`.
    """
    try:
        done = await outside.run_async([binary, "--version"], limit_s=LIMIT_S)
    except TimeoutError as error:
        raise UnavailableError(
            f"{name} ({binary}) didn't tell its version within {LIMIT_S:g} s", hint=install
        ) from error
    except OSError as error:
        raise UnavailableError(
            f"{name} ({binary}) can't be run: {error.strerror or error}", hint=install
        ) from error
    match = re.search(pattern, done.stdout.decode(errors="replace"))
    if done.failed or (match is None and done.status is None):
        how = f"it ended with {done.status}" if done.failed else "it told no version"
        detail = f": {done.last_words}" if done.last_words else ""
        raise UnavailableError(f"{name} ({binary}) can't be run: {how}{detail}", hint=install)
    return match[1] if match else None


def _look(binary: str) -> _Binary | None:
    """Return the program's facts; None for a script, which may start another program tomorrow."""
    try:
        path = Path(binary).resolve()
        with path.open("rb") as opened:
            facts = _facts(os.fstat(opened.fileno()))
            if opened.read(len(_ELF)) != _ELF:
                return None
    except OSError:
        return None
    return _Binary(visible(str(path)), facts)


def _file() -> Path:
    return config.cache_directory() / f"versions-{os.geteuid()}.json"


def _read() -> dict[str, _Told]:
    """Read the programs' remembered versions, by path. A cache that can't be read costs only time."""
    try:
        remembered = msgspec.json.decode(_file().read_bytes(), type=dict[str, _Told])
    except (OSError, msgspec.MsgspecError, ValueError, RecursionError, UnavailableError):
        return {}
    return {path: version for path, version in remembered.items() if _VERSION.fullmatch(version.version)}


def _write(remembered: dict[str, _Told]) -> None:
    # A cache that can't be written costs time and nothing else.
    with suppress(OSError, FilesystemError, UnavailableError):
        _file().parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_durably(_file(), msgspec.json.encode(remembered))
