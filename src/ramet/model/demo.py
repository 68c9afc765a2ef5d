"""The report of `ramet demo`."""

from __future__ import annotations

import msgspec

from ramet.model.schema import Receipt


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
