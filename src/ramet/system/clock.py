"""The time, as records and manifests have it."""

from __future__ import annotations

from datetime import UTC, datetime


def now() -> str:
    """UTC, ISO 8601, to the millisecond."""
    return _text(datetime.now(UTC))


def time_text(seconds: float) -> str:
    """Return a time in seconds since the epoch, as `now` has it."""
    return _text(datetime.fromtimestamp(seconds, UTC))


def _text(time: datetime) -> str:
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
