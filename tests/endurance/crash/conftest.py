"""A Host on which the probe guest runs under Firecracker."""

from __future__ import annotations

from tests.support.probes import probes

__all__ = ["probes"]
