"""Container images as the model has them: their configuration, and the main process that comes of it.

Source: OCI image specification 1.1, `config.md`; Docker's `run` reference for what a user may override.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from ramet.errors import UsageError
from ramet.units import KIB

DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MOST_TEXT_BYTES: Final = 56 * KIB
"""A message to the guest has 64 KiB, and other commands add to the environment."""
_BYTES_BESIDE_A_TEXT: Final = 8
_LAST_SIGNAL: Final = 64
_REAL_TIME: Final = (34, 64)
"""SIGRTMIN and SIGRTMAX, as glibc and musl number them for programs (signal(7), nptl(7))."""
_SIGNALS: Final = {
    name.removeprefix("SIG"): int(number)
    for name, number in signal.Signals.__members__.items()
    if not name.startswith("SIGRT")
}
"""By name without SIG. Real-time signals are computed: their numbers here may be another C library's."""


class ImageConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The part of an image's configuration that a guest is run by.

    `env` are `NAME=value`, in the image's order. `user` and `working_dir` are as the image writes them, empty
    for none; a user's name is looked up in the guest. `stop_signal` is a name or a number, empty for SIGTERM.
    """

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    user: str = ""
    working_dir: str = ""
    stop_signal: str = ""
    exposed_ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    has_healthcheck: bool = False
    """True if the image has a health check, which ramet shows and doesn't run."""


class MainProcess(msgspec.Struct, frozen=True, kw_only=True):
    """The main process of an instance of a container image: with its end, the instance ends.

    Other commands of the instance take `env`, `cwd` and `user` as their defaults. `argv` is empty for an
    instance without a main process (`--idle`, and nothing to run in image or call).
    """

    argv: tuple[str, ...] = ()
    env: dict[str, str] = {}
    cwd: str = "/"
    user: str = ""
    stop_signal: int = 15
    is_idle: bool = False
    """True while the main process isn't to be started with the guest."""
    authorities: tuple[str, ...] = ()
    """Certificates in PEM that the guest trusts beside those of its image, added at each boot."""


def main_process(
    config: ImageConfig,
    image: str,
    *,
    command: Sequence[str] | None = None,
    entrypoint: Sequence[str] | None = None,
    env: Mapping[str, str] | None = None,
    user: str | None = None,
    workdir: str | None = None,
    stop_signal: str | None = None,
    is_idle: bool = False,
    authorities: Sequence[str] = (),
) -> MainProcess:
    """Make the main process of an image's configuration and of what a user gives instead.

    A given entrypoint drops the image's command too; an empty one drops the image's entrypoint. Raises
    `UsageError` when nothing is left to run (unless the instance is idle), and for values that can't be:
    together they have to fit into one message to the guest.
    """
    arguments = config.cmd if entrypoint is None else ()
    if command:
        arguments = tuple(command)
    argv = (*(config.entrypoint if entrypoint is None else filter(None, entrypoint)), *arguments)
    if not argv and not is_idle:
        raise UsageError(
            f"the image {image} has no entrypoint and no command, so there is nothing to run",
            hint=f"name a program: `ramet run {image} PROGRAM…`, or leave the guest idle: --idle",
        )
    variables = dict(_variable(text) for text in config.env if not text.startswith("="))
    variables.update(env or {})
    variables.setdefault("PATH", DEFAULT_PATH)
    cwd = workdir or config.working_dir or "/"
    if not cwd.startswith("/"):
        if workdir:
            raise UsageError(f"{cwd!r} is no absolute path", hint="give one that begins with /")
        cwd = f"/{cwd}"
    user = user if user is not None else config.user
    _require_texts(image, [*argv, *variables, *variables.values(), cwd, user])
    name = stop_signal or config.stop_signal
    try:
        number = signal_number(name) if name else signal.SIGTERM
    except UsageError:
        if stop_signal:
            raise
        number = signal.SIGTERM  # an image's mistake ends no run
    return MainProcess(
        argv=argv,
        env=variables,
        cwd=cwd,
        user=user,
        stop_signal=int(number),
        is_idle=is_idle,
        authorities=tuple(authorities),
    )


def signal_number(text: str) -> int:
    """Return the number of a signal, such as `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`. Raises `UsageError`."""
    name = text.strip().upper().removeprefix("SIG")
    if name.isascii() and name.isdigit() and len(name) < 4 and 1 <= int(name) <= _LAST_SIGNAL:
        return int(name)
    if known := _SIGNALS.get(name):
        return known
    if match := re.fullmatch(r"RTM(IN|AX)(?:([+-])(\d{1,2}))?", name):
        first, last = _REAL_TIME
        offset = int(match[3] or 0) * (-1 if match[2] == "-" else 1)
        number = (first if match[1] == "IN" else last) + offset
        if first <= number <= last:
            return number
    raise UsageError(f"{text!r} is no signal", hint="say a name or a number, such as SIGINT or 2")


def _require_texts(image: str, texts: Sequence[str]) -> None:
    total_bytes = 0
    for text in texts:
        try:
            total_bytes += len(text.encode()) + _BYTES_BESIDE_A_TEXT
        except UnicodeEncodeError:
            raise UsageError(
                f"{text!r} can't be given to the main process of {image}: it isn't UTF-8",
                hint="run it as a command of an idle instance: --idle, then `ramet exec`",
            ) from None
        if "\0" in text:
            raise UsageError(f"{text[:60]!r} has a NUL character in it, which no program can be given")
    if total_bytes > MOST_TEXT_BYTES:
        raise UsageError(
            f"arguments and environment of the main process of {image} have {total_bytes} bytes, more than"
            f" the {MOST_TEXT_BYTES} that a guest is given",
            hint="put long values into a file",
        )


def _variable(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name, value
