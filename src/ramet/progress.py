"""Progress of long work: reported where the work is done, received by the caller that waits for its end.

A context variable carries the receiver into worker threads and tasks, so no function in between needs a
parameter for it. Without a receiver a report costs less than a microsecond.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, NamedTuple, Protocol


class Progress(NamedTuple):
    """The state of one stage of some work."""

    stage: str
    """Words for people, such as `checking mem`; empty where the work has only one stage."""
    done: int
    total: int
    """0 when the amount of work is unknown."""
    unit: str
    """`bytes`, or the word for the counted things, such as `forks`."""


class Receiver(Protocol):
    """Takes reports, often, and from any thread: it must be quick and must not raise."""

    def __call__(self, progress: Progress, /) -> None:
        """Take a report."""


_receiver: Final[ContextVar[Receiver | None]] = ContextVar("ramet.progress", default=None)


def report(stage: str, done: int = 0, total: int = 0, *, unit: str = "bytes") -> None:
    """Tell the receiver of this context, if there is one, how far `stage` is."""
    receiver = _receiver.get()
    if receiver is not None:
        receiver(Progress(stage, done, total, unit))


@contextmanager
def received_by(receiver: Receiver) -> Iterator[None]:
    """Send all reports of the work inside the block, in its tasks and worker threads too, to `receiver`."""
    token = _receiver.set(receiver)
    try:
        yield
    finally:
        _receiver.reset(token)
