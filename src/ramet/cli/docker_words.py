"""Hints for commands and options that people know from Docker.

A near name would be wrong for them: `rmi` isn't `rm`, which removes instances.
"""

from __future__ import annotations

from typing import Any, Final

from typer.core import TyperGroup

from ramet.errors import UsageError

_IMPORT: Final = "`ramet image import` takes the archive of `docker save`; `ramet snapshot import` a snapshot"
_EXPORT: Final = "`ramet snapshot export` writes a snapshot to a file; `ramet image push` pushes an image"
_BUILD: Final = "build with docker, podman or buildah; then `ramet image import docker:NAME`"
_LOGIN: Final = "ramet uses the logins of `docker login` and `podman login`, and stores no others"
_LIST: Final = "`ramet ps` lists instances; `ramet image ls` lists images"

COMMANDS: Final = {
    "attach": "`ramet logs -f NAME` follows the output; `ramet exec NAME -- PROGRAM` runs a program",
    "build": _BUILD,
    "commit": "`ramet snapshot create` keeps an instance's memory and disks",
    "container": _LIST,
    "cp": "pass files through a command: `ramet exec NAME -- sh -c 'cat > /file' < file`",
    "create": "`ramet run --idle` boots a guest without its main process",
    "export": _EXPORT,
    "history": "`ramet image inspect` shows the layers of an image",
    "images": "`ramet image ls` lists images",
    "import": _IMPORT,
    "info": "`ramet doctor` shows this machine, `ramet inspect NAME` an instance",
    "kill": "`ramet stop --timeout 0 NAME` ends a guest at once",
    "list": _LIST,
    "load": _IMPORT,
    "login": _LOGIN,
    "logout": _LOGIN,
    "ls": _LIST,
    "prune": "`ramet image prune` removes what no image needs",
    "push": "`ramet image push IMAGE REFERENCE` pushes an image to a registry",
    "restart": "`ramet stop NAME`, then `ramet start NAME`; `ramet rewind` returns to a snapshot",
    "rmi": "`ramet image rm` removes images",
    "save": _EXPORT,
    "top": "`ramet stats` measures instances",
    "unpause": "`ramet resume` resumes paused instances",
    "version": "`ramet --version` prints the version",
    "image build": _BUILD,
    "image history": "`ramet image inspect` shows the layers of an image",
    "image load": "`ramet image import` takes the archive of `docker save`",
    "image save": "`ramet image push` pushes an image to a registry",
}
"""The hint for each of Docker's commands that ramet doesn't have, by the words after `ramet`."""

_NO_NETWORK: Final = "guests have no network yet; `ramet exec` reaches a guest without one"
_NO_DIRECTORIES: Final = (
    "guests see no directories of this machine yet; `--disk SIZE:PATH` adds an empty disk,"
    " and `ramet image import` takes a directory as an image"
)
_NO_TERMINAL: Final = "there are no terminals yet; -i alone forwards standard input"

RUN_OPTIONS: Final = {
    "-m": "--memory SIZE sets the RAM of the guest",
    "-p": _NO_NETWORK,
    "-t": _NO_TERMINAL,
    "-v": _NO_DIRECTORIES,
    "--gpus": "guests have no GPU",
    "--hostname": "a guest's hostname is its name: --name",
    "--init": "an agent outside of the image is process 1 and reaps orphans, so no init is needed",
    "--mount": _NO_DIRECTORIES,
    "--net": _NO_NETWORK,
    "--network": _NO_NETWORK,
    "--privileged": "each guest has a separate kernel, and its root may do all: leave --privileged out",
    "--publish": _NO_NETWORK,
    "--tty": _NO_TERMINAL,
    "--volume": _NO_DIRECTORIES,
}
"""The hint for each option of `docker run` that `ramet run` doesn't have."""


class Commands(TyperGroup):
    """A group of commands that knows Docker's names of them."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that `args` begin with. Raises `UsageError` with a hint for one of Docker's."""
        if args and not ctx.resilient_parsing and self.get_command(ctx, args[0]) is None:
            _refuse(ctx, args[0])
        return super().resolve_command(ctx, args)


def _refuse(ctx: Any, word: str) -> None:
    path = " ".join([*ctx.command_path.split()[1:], word])
    if (hint := COMMANDS.get(path)) is None:
        return
    raise UsageError(f"there is no command `ramet {path}`", hint=hint)


def option_hint(command_path: str, option: str | None) -> str | None:
    """Return what there is instead of an option of `docker run` or `docker exec`; None for other options."""
    verb = command_path.split()[1:]
    if verb == ["exec"]:
        return _NO_TERMINAL if option in {"-t", "--tty"} else None
    return RUN_OPTIONS.get(option) if option and verb == ["run"] else None
