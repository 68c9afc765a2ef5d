"""The beginning and the last error of a ramet program, such as the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ramet.system import launching

if TYPE_CHECKING:
    from ramet.errors import RametError


def begin() -> None:
    """Reset the signals of this process: children have exit statuses, and signals arrive."""
    launching.reset()


def explained(error: OSError | RametError) -> OSError | RametError:
    """Return the `LimitReachedError` behind `error` where a limit of this machine has caused it."""
    from ramet.system.process_limit import reached_by

    return reached_by(error) or error
