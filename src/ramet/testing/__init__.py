"""Test suites that other projects can run against their own parts.

They need pytest: `pip install ramet[testing]`.
`driver_contract` holds a driver to what ramet's engine depends on. Nothing in ramet imports this package.
"""

from __future__ import annotations

import pytest

# Before a module with tests is imported: pytest then explains a failed assertion there as it does elsewhere.
pytest.register_assert_rewrite("ramet.testing.driver_contract")
