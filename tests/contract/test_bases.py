"""The contract of drivers, held by ramet's own: `ramet.testing.driver_contract.bases`."""

from __future__ import annotations

import pytest

from ramet.testing.driver_contract.bases import *

pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.timeout(600), pytest.mark.core]
