"""The contract of drivers, held by ramet's own: `ramet.testing.driver_contract.captures`."""

from __future__ import annotations

import pytest

from ramet.testing.driver_contract.captures import *

pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.timeout(600), pytest.mark.core]
