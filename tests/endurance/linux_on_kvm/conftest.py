"""Only where KVM runs Linux: on a metal host or in the emulated one (`tests/endurance/emulated_host`)."""

from __future__ import annotations

import anyio
import pytest

from ramet import config
from ramet.system.kvm import kvm_verdict


@pytest.fixture(scope="session", autouse=True)
def _runs_linux() -> None:
    async def ask() -> None:
        verdict = await kvm_verdict(config.cache_directory())
        if verdict.status != "runs_linux":
            pytest.skip(
                f"KVM doesn't run Linux here ({verdict.status}): `make test-deep` runs this in the emulated"
                " host, and where KVM does it runs directly"
            )

    anyio.run(ask)
