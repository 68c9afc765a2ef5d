"""What the engine hands back to Python users."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from ramet.errors import ExecError, PartlyFailedError, RametError
from ramet.text import printable

if TYPE_CHECKING:
    from ramet.engine.vm import VM


class ExecResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a command in a guest left behind. Exactly one of `exit_code` and `signal` is set."""

    argv: tuple[str, ...]
    exit_code: int | None
    signal: int | None
    stdout: bytes
    stderr: bytes

    @property
    def ok(self) -> bool:
        """Whether it ended with exit code 0."""
        return self.exit_code == 0

    @property
    def text(self) -> str:
        """Standard output as text; bytes that aren't UTF-8 are replaced."""
        return self.stdout.decode(errors="replace")

    @property
    def shell_code(self) -> int:
        """What a shell would report: the exit code, or 128 + the signal."""
        return self.exit_code if self.exit_code is not None else 128 + (self.signal or 0)

    def check(self) -> ExecResult:
        """This result, or `ExecError` with the end of standard error when the command failed."""
        if self.ok:
            return self
        how = f"exit code {self.exit_code}" if self.signal is None else f"signal {self.signal}"
        # A guest's words, on their way to somebody's terminal.
        said = printable(self.stderr[-400:]).strip()
        raise ExecError(f"{self.argv[0]}: {how}" + (f": {said}" if said else ""))


class InstanceName(msgspec.Struct, frozen=True, kw_only=True):
    """What stands for an instance in another process: `Host.get` takes either."""

    id: str
    name: str


class ForkError(PartlyFailedError):
    """Some forks of one call failed.

    `forks` are those that live, `errors` what became of the others, by name. Pickled, `forks` become their
    ids and names, as `InstanceName`: handles stay with their Host. `Host.get` there gives others.
    """

    def __init__(self, forks: Sequence[VM], errors: dict[str, Exception]) -> None:
        names = ", ".join(errors)
        first = next(iter(errors.values()))
        super().__init__(f"{len(errors)} of {len(errors) + len(forks)} forks failed ({names}): {first}")
        self.forks = list(forks)
        self.errors = errors

    def _carried(self) -> dict[str, object]:
        return {
            **super()._carried(),
            "forks": [InstanceName(id=one.id, name=one.name) for one in self.forks],
            "errors": {name: _portable(error) for name, error in self.errors.items()},
        }


def _portable(error: Exception) -> Exception:
    """An error that can be pickled: itself, or one of ramet's that says the same."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # somebody else's class: what it says goes, its kind is named
        return RametError(f"{type(error).__name__}: {error}")
    return error
