"""The contract of drivers, held by ramet's own: `ramet.testing.driver_contract.life`."""

from __future__ import annotations

import pytest

from ramet.testing.driver_contract.life import *

pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.timeout(600), pytest.mark.core]
