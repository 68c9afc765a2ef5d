"""The JSON documents of verbs whose Python method returns no shape: the command line's, and any other front
end's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from ramet.model.schema import ErrorShape, Instance

if TYPE_CHECKING:
    from ramet.model.exec_result import ExecResult


class ErrorDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What every verb prints when it fails."""

    error: ErrorShape


class CommandResult(msgspec.Struct, frozen=True, kw_only=True):
    """`exec`: how a command in the guest ended and what it wrote. Bytes that aren't UTF-8 are replaced."""

    exit_code: int | None
    """Null when a signal ended it."""
    signal: int | None
    stdout: str
    stderr: str


def command_result(result: ExecResult) -> CommandResult:
    """The document of a command that ended."""
    return CommandResult(
        exit_code=result.exit_code,
        signal=result.signal,
        stdout=result.stdout.decode(errors="replace"),
        stderr=result.stderr.decode(errors="replace"),
    )


class Spawned(msgspec.Struct, frozen=True, kw_only=True):
    """`exec -d`: a command that nobody waits for."""

    pid: int
    """In the guest."""


class RunResult(Instance, frozen=True, kw_only=True):
    """`run IMAGE -- CMD`: the instance, and what the command left behind."""

    command: CommandResult


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """The place of a reference that failed, where a verb was given several."""

    reference: str
    error: ErrorShape
    ok: Literal[False] = False


class PartlyRemoved(msgspec.Struct, frozen=True, kw_only=True):
    """`rm` when something couldn't be removed."""

    removed: list[str]
    failed: list[Failure]


class LogDocument(msgspec.Struct, frozen=True, kw_only=True):
    """`logs`: the end of the log; with `-f` one document for each piece that is added."""

    id: str
    text: str
