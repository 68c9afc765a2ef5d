"""The contract of drivers, held by ramet's own: `ramet.testing.driver_contract.life`."""

from __future__ import annotations

import pytest

from ramet.drivers import http_api
from ramet.drivers.qemu import monitor
from ramet.testing.driver_contract.life import *

pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.timeout(600), pytest.mark.core]


@pytest.fixture(autouse=True)
def _short_limits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A VMM that hangs costs a second, not the 20 s that ramet waits for its answer."""
    if request.function.__name__ == "test_a_vmm_that_hangs_is_a_timeout_and_not_a_wait_for_ever":
        monkeypatch.setattr(monitor, "ANSWER_LIMIT_S", 1.0)
        monkeypatch.setattr(http_api, "ANSWER_LIMIT_S", 1.0)
