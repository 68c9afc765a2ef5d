"""What `--json` prints beside the model's shapes: results of verbs that only the command line has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from ramet.model.shapes import ErrorShape, Instance, Receipt

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


class DemoFork(msgspec.Struct, frozen=True, kw_only=True):
    """One fork of the demo: its receipt, and the digests of the data in its RAM."""

    receipt: Receipt
    inherited_digest: str
    own_digest: str
    """After it has overwritten a part."""
    guest_private_bytes: int
    """Guest RAM that is its own at the end."""


class DemoReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the demo did and found. `failed_checks` is empty when all is as it should be."""

    forks: list[DemoFork]
    failed_checks: list[str]
    original_digest: str
    template_digest: str
    """Of the template's mem-file, the same before and after."""
    if_copied_bytes: int
    """What the forks' memory would occupy if each had a copy: their number times the mem-file's blocks."""
    in_fact_bytes: int
    """What it occupies: the mem-file's blocks once, and the pages that each fork has changed."""
    fork_ms: float
    total_ms: float
