"""`ramet` as a shell runs it, and filesystems for its homes."""

from __future__ import annotations

from tests.support.loop_filesystems import full, xfs
from tests.support.shell import guest, hangs_up, ramet
from tests.support.stored_homes import captured, stored

__all__ = ["captured", "full", "guest", "hangs_up", "ramet", "stored", "xfs"]
