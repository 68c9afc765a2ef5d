"""Container images as the model has them: their configuration, and the main process that comes of it.

Source: OCI image specification 1.1, `config.md`; Docker's `run` reference for what a user may override.
"""

from __future__ import annotations

import msgspec


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
