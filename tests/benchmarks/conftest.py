"""The probe, for the floor."""

from __future__ import annotations

from tests.vm.probe.conftest import probe, runs_code

__all__ = ["probe", "runs_code"]
