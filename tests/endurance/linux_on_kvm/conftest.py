"""Only where KVM runs Linux: on a metal host or in the emulated one (`tests/endurance/emulated_host`)."""

from __future__ import annotations

from functools import partial

import anyio
import pytest

from tests import machines


@pytest.fixture(scope="session", autouse=True)
def _runs_linux() -> None:
    hint = "; `make test-deep` runs this in the emulated host"
    anyio.run(partial(machines.require_kvm, "linux", hint=hint))
