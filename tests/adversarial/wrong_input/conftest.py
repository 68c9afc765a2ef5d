"""A Host on which the probe guest runs under Firecracker."""

from __future__ import annotations

from tests.support.probes import make_template, probes

__all__ = ["make_template", "probes"]
