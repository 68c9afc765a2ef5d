"""`ramet` as a shell runs it."""

from __future__ import annotations

from tests.support.shell import guest, hangs_up, ramet

__all__ = ["guest", "hangs_up", "ramet"]
