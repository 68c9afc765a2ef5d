"""Settings, all from the environment, read when asked for so that tests and notebooks can change them.

An empty variable counts as unset. A relative path is made absolute when it is first seen, and keeps that
meaning: a program may change its working directory afterwards.
"""

from __future__ import annotations

import functools
import os
import pwd
from pathlib import Path

from ramet.errors import UnavailableError


def home_directory() -> Path:
    """Return `RAMET_HOME`, else `$XDG_DATA_HOME/ramet`, else `~/.local/share/ramet`.

    Raises `UnavailableError` when none of these is known: no HOME, and a user without a passwd entry.
    """
    if chosen := _path_of("RAMET_HOME"):
        return chosen
    return (_base("XDG_DATA_HOME") or _user_home("RAMET_HOME") / ".local" / "share") / "ramet"


def cache_directory() -> Path:
    """Return the cache of kernels and images, which can be made again.

    It is `RAMET_CACHE`, else `$XDG_CACHE_HOME/ramet`, else `~/.cache/ramet`, else `cache` in ramet's home.
    Raises `UnavailableError` when none of these is known.
    """
    if chosen := _path_of("RAMET_CACHE"):
        return chosen
    if base := _base("XDG_CACHE_HOME"):
        return base / "ramet"
    try:
        return _user_home("RAMET_HOME") / ".cache" / "ramet"
    except UnavailableError:
        return home_directory() / "cache"  # a container whose user has no home: RAMET_HOME is enough there


def driver() -> str:
    """Return `RAMET_DRIVER`, the driver that is used if none is named. Default `auto`."""
    return text("RAMET_DRIVER") or "auto"


def qemu_binary() -> str:
    """Return `RAMET_QEMU`, an absolute path, or a name on PATH. Default `qemu-system-x86_64`."""
    return _program_setting("RAMET_QEMU") or "qemu-system-x86_64"


def tools_directory() -> Path:
    """Return the directory of programs that PATH hasn't got: `<cache>/tools`."""
    return cache_directory() / "tools"


def agent_binary() -> Path | None:
    """Return `RAMET_AGENT`, a guest agent to use instead of the one that ramet carries."""
    return _path_of("RAMET_AGENT")


def kernel_image() -> Path | None:
    """Return `RAMET_KERNEL`, a bzImage or vmlinux; its modules' place: `docs/reference/images.md`."""
    return _path_of("RAMET_KERNEL")


def boot_snapshots() -> str | None:
    """Return `RAMET_BOOT_SNAPSHOTS`, the size that a home's boot snapshots may have; `0` for none of them."""
    return text("RAMET_BOOT_SNAPSHOTS")


def _program_setting(variable: str) -> str | None:
    """Return the program in `variable`: an absolute path if it has a slash, else a name on PATH."""
    value = text(variable)
    return value if value is None or "/" not in value else str(_path_of(variable))


def text(variable: str) -> str | None:
    """Return the value of a variable; None when it is unset or empty."""
    return os.environ.get(variable) or None


def absolute(value: str, *, meaning: str) -> Path:
    """Return `value` as an absolute path, the same for the same relative value while this process runs.

    The process may change its directory meanwhile. `meaning` is the source of the value, for the error.

    Raises `UnavailableError` for a relative path when the working directory is gone, and for `~user` without
    such a user.
    """
    if value.startswith("~"):
        return _expanded(value, meaning)
    if value.startswith("/"):
        return Path(value)
    try:
        return _from_here(value)
    except FileNotFoundError as error:
        raise UnavailableError(
            f"{meaning} is {value!r}, a relative path, and the working directory is gone",
            hint="give an absolute path, or change to a directory that is there",
        ) from error


@functools.cache
def _from_here(value: str) -> Path:
    return Path.cwd() / value


def _expanded(value: str, meaning: str) -> Path:
    """Expand `~` and `~user` as a shell does: a variable that was set without a shell still has them."""
    name, _, rest = value[1:].partition("/")
    try:
        home = Path(pwd.getpwnam(name).pw_dir) if name else _user_home(meaning)
    except KeyError as error:
        raise UnavailableError(
            f"{meaning} is {value!r}, and there is no user {name!r}", hint="give an absolute path"
        ) from error
    return home / rest


def _path_of(variable: str) -> Path | None:
    value = text(variable)
    return None if value is None else absolute(value, meaning=variable)


def _base(variable: str) -> Path | None:
    """Return an XDG base directory; ignore a relative path (XDG Base Directory Specification, "Basics")."""
    value = text(variable)
    return Path(value) if value is not None and value.startswith("/") else None


def _user_home(variable: str) -> Path:
    """Return the user's home directory: HOME, else the home directory in the passwd entry.

    It has to exist: a user without one is given `/nonexistent`, which must not be made. `variable` is the
    setting that can be used instead.
    """
    hint = f"set {variable} to a directory of yours, or HOME to your home directory"
    if (home := text("HOME")) and home.startswith("/"):
        source = f"HOME is {home}"
    else:
        unset = "neither it nor HOME is set" if not home else f"HOME is {home!r}, a relative path"
        try:
            home = pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:
            home = ""
        if not home.startswith("/"):
            raise UnavailableError(
                f"{variable} can't be told: {unset}, and user {os.getuid()} has no passwd entry", hint=hint
            )
        source = f"HOME isn't set, and the passwd entry of user {os.getuid()} says {home}"
    if not Path(home).is_dir():
        raise UnavailableError(f"{variable} isn't set, and {source}, which is no directory", hint=hint)
    return Path(home)
