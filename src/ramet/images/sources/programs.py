"""Images of Docker and podman on this machine, saved by their own commands into a file.

The names of images are theirs to read. Their commands run with a limit, and speak only to the service or the
storage that they are set up for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from ramet.errors import NotFoundError, UnavailableError, UsageError
from ramet.programs import Program
from ramet.progress import report
from ramet.system import outside
from ramet.text import printable

SCHEMES: Final = ("docker:", "podman:")
LIMIT_S: Final = 3600.0
_ABSENT: Final = ("no such image", "image not known", "reference does not exist", "not found")
_NO_DAEMON: Final = (
    "cannot connect to the docker daemon",
    "is the docker daemon running",
    "connection refused",
)
_NOT_ALLOWED: Final = ("permission denied",)


async def save(source: str, archive: Path) -> None:
    """Save the image that `docker:NAME` or `podman:NAME` names into the new file `archive`.

    Raises `UsageError` for no name or a strange one, `NotFoundError`, `UnavailableError` when the program is
    missing, has no service to speak to, fails, or takes too long.
    """
    tool, _, name = source.partition(":")
    if not name or name.startswith("-") or not name.isprintable() or name != name.strip():
        raise UsageError(
            f"{source!r} names no image of {tool}", hint=f"write {tool}:NAME, as `{tool} images` lists it"
        )
    program = _program(tool).path()
    form = ["--format", "oci-archive"] if tool == "podman" else []
    argv = [program, "save", *form, "--output", str(archive), "--", name]
    report(f"{tool} saves {name}")
    try:
        outcome = await outside.run_async(argv, limit_s=LIMIT_S)
    except TimeoutError as error:
        raise UnavailableError(
            f"{tool} didn't save {name} within {LIMIT_S:g} s", hint=f"see whether `{tool} images` answers"
        ) from error
    except OSError as error:
        raise UnavailableError(f"{tool} can't be run: {error.strerror}") from error
    if outcome.failed or not archive.is_file():
        raise _failure(tool, name, printable(outcome.last_words.encode()))


def _program(tool: str) -> Program:
    package = "docker.io" if tool == "docker" else "podman"
    return Program(
        {"docker": "Docker", "podman": "podman"}[tool],
        tool,
        hint=f"install it (Debian, Ubuntu: {package}), or save the image elsewhere and import the archive",
    )


def _failure(tool: str, name: str, words: str) -> NotFoundError | UnavailableError:
    said = words.lower()
    if any(phrase in said for phrase in _NO_DAEMON):
        return UnavailableError(
            f"{tool} can't save {name}: its daemon doesn't run",
            hint="start it (`systemctl start docker`), or say where it is (DOCKER_HOST)",
        )
    if any(phrase in said for phrase in _NOT_ALLOWED):
        return UnavailableError(
            f"{tool} can't save {name}: {words}",
            hint=f"this user may not use {tool}: become a member of its group, or run ramet as one who may",
        )
    if any(phrase in said for phrase in _ABSENT):
        return NotFoundError(
            f"{tool} has no image {name}",
            hint=f"`{tool} images` lists its images; `ramet pull {name}` asks a registry",
        )
    return UnavailableError(f"{tool} can't save {name}: {words or 'it says nothing'}")
