"""`ramet` as a shell runs it, and filesystems for its homes."""

from __future__ import annotations

from tests.support.loop_filesystems import full, xfs
from tests.support.shell import guest, hangs_up, ramet

__all__ = ["full", "guest", "hangs_up", "ramet", "xfs"]
