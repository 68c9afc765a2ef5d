"""The end of a command in a guest: its result, and the collector of its output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from ramet.errors import ExecError, ExecTimeoutError, GuestError
from ramet.model.command import ExitStatus
from ramet.surface import exported
from ramet.text import printable
from ramet.units import MIB

DEFAULT_MAX_OUTPUT_BYTES: Final = 64 * MIB


@exported
class ExecResult(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a command in a guest. Exactly one of `exit_code` and `signal` is set."""

    argv: tuple[str, ...]
    exit_code: int | None
    signal: int | None
    stdout: bytes
    stderr: bytes
    note: str | None = None
    """A likely cause of a failure that ramet knows: the root of a container image's guest is full."""

    @property
    def ok(self) -> bool:
        """True if the command ended with exit code 0."""
        return self.exit_code == 0

    @property
    def text(self) -> str:
        """Standard output as text; bytes that aren't UTF-8 are replaced."""
        return self.stdout.decode(errors="replace")

    @property
    def shell_code(self) -> int:
        """The exit code that a shell would report: the command's, or 128 + the signal."""
        return self.exit_code if self.exit_code is not None else 128 + (self.signal or 0)

    def check(self) -> ExecResult:
        """Return this result, or raise `ExecError` with the end of standard error if the command failed."""
        if self.ok:
            return self
        how = f"exit code {self.exit_code}" if self.signal is None else f"signal {self.signal}"
        # A guest's words, on their way to a terminal.
        last_words = printable(self.stderr[-400:]).strip()
        raise ExecError(f"{self.argv[0]}: {how}" + (f": {last_words}" if last_words else ""), hint=self.note)


class Collector:
    """Collects a command's output, at most `max_output_bytes` of both streams together, for its result."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float | None = None,
        max_output_bytes: int = DEFAULT_MAX_OUTPUT_BYTES,
        hint: str = "send its output to a file in the guest, or stream it",
    ) -> None:
        self._argv = tuple(argv)
        self._timeout_s = timeout_s
        self._max_output_bytes = max_output_bytes
        self._hint = hint
        self._output = {"stdout": bytearray(), "stderr": bytearray()}

    def take(self, stream: Literal["stdout", "stderr"], data: bytes) -> None:
        """Keep a piece of output.

        Raises `GuestError` if the output exceeds the limit. The caller then leaves the command's block, which
        kills the command.
        """
        self._output[stream].extend(data)
        if sum(map(len, self._output.values())) > self._max_output_bytes:
            raise GuestError(
                f"{self._argv[0]!r} wrote more than {self._max_output_bytes} bytes, which ends it",
                hint=self._hint,
            )

    def result(self, end: ExitStatus) -> ExecResult:
        """Return the result of a command with this end. Raises `ExecTimeoutError` if its time ran out."""
        if end.timed_out:
            raise ExecTimeoutError(
                f"{self._argv[0]} didn't end within {self._timeout_s or 0:g} s and was killed"
            )
        return ExecResult(
            argv=self._argv,
            exit_code=end.exit_code,
            signal=end.signal,
            stdout=bytes(self._output["stdout"]),
            stderr=bytes(self._output["stderr"]),
        )
