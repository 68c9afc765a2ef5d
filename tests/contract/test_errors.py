"""The contract of drivers, held by ramet's own: `ramet.testing.driver_contract.errors`."""

from __future__ import annotations

import pytest

from ramet.testing.driver_contract.errors import *

pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.timeout(600), pytest.mark.core]
