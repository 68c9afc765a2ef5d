"""One emulated host for all tests of this directory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ramet.errors import UnavailableError
from tests.emulated_host.machine import EmulatedHost


@pytest.fixture(scope="session")
def emulated() -> Iterator[EmulatedHost]:
    """The host, booted. Skips with the reason where it can't be made."""
    try:
        host = EmulatedHost()
        with host:
            print(f"the emulated host: seconds for each step {host.timings_s}")
            yield host
        print(f"the emulated host: its QEMU held at most {host.peak_bytes >> 20} MiB; nudges: {host.nudges}")
    except UnavailableError as error:
        pytest.skip(str(error))
