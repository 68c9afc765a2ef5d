"""The report of `ramet demo`."""

from __future__ import annotations

import msgspec

from ramet.model.schema import Receipt


class DemoFork(msgspec.Struct, frozen=True, kw_only=True):
    """A fork of the demo: its receipt, and the digests of the data in its RAM."""

    receipt: Receipt
    inherited_digest: str
    own_digest: str
    """The digest after the fork overwrote a part of the data."""
    guest_private_bytes: int
    """The guest RAM that only this fork has, at the end."""


class DemoReport(msgspec.Struct, frozen=True, kw_only=True):
    """The result of `demo`. `failed_checks` is empty if everything is as it should be."""

    forks: list[DemoFork]
    failed_checks: list[str]
    original_digest: str
    template_digest: str
    """The digest of the template's mem-file, the same before and after the forks."""
    if_copied_bytes: int
    """The memory of the forks if each had a copy: their number times the blocks of the mem-file."""
    in_fact_bytes: int
    """The memory that the forks occupy: the blocks of the mem-file once, and the pages each fork changed."""
    fork_ms: float
    total_ms: float
