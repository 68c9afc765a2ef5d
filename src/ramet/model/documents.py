"""The JSON documents of verbs whose Python method returns no shape, for every front end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from ramet.model.schema import ErrorShape, Instance

if TYPE_CHECKING:
    from ramet.model.exec_result import ExecResult


class ErrorDocument(msgspec.Struct, frozen=True, kw_only=True):
    """The document of every verb that fails."""

    error: ErrorShape


class CommandResult(msgspec.Struct, frozen=True, kw_only=True):
    """`exec`: the end and the output of a command in the guest. Bytes that aren't UTF-8 are replaced."""

    exit_code: int | None
    """Null if a signal ended the command."""
    signal: int | None
    stdout: str
    stderr: str
    note: str | None = None
    """A likely cause of a failure: the root of a container image's guest is full."""


def command_result(result: ExecResult) -> CommandResult:
    """Make the document of a command that ended."""
    return CommandResult(
        exit_code=result.exit_code,
        signal=result.signal,
        stdout=result.stdout.decode(errors="replace"),
        stderr=result.stderr.decode(errors="replace"),
        note=result.note,
    )


class Spawned(msgspec.Struct, frozen=True, kw_only=True):
    """`exec -d`: a command that nobody waits for."""

    pid: int
    """The process id in the guest."""


class RunResult(Instance, frozen=True, kw_only=True):
    """`run IMAGE CMD`: the instance, and the result of the command or of the main process."""

    command: CommandResult


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """A reference that failed, at its place among several."""

    reference: str
    error: ErrorShape
    ok: Literal[False] = False


class PartlyRemoved(msgspec.Struct, frozen=True, kw_only=True):
    """`rm` if some removals failed."""

    removed: list[str]
    failed: list[Failure]


class LogDocument(msgspec.Struct, frozen=True, kw_only=True):
    """`logs`: the end of the log; with `-f` one document per added piece."""

    id: str
    text: str
