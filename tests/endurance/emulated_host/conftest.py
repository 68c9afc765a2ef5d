"""One emulated host for all tests of this directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ramet.errors import UnavailableError
from tests.endurance.emulated_host.machine import EmulatedHost


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Naming the inner tests takes a pytest of its own for each file: not for runs without deep tests."""
    return True if "not deep" in config.option.markexpr and collection_path.suffix == ".py" else None


@pytest.fixture(scope="session")
def emulated() -> Iterator[EmulatedHost]:
    """The host, booted. Skips with the reason where it can't be made."""
    try:
        host = EmulatedHost()
        with host:
            print(f"the emulated host: seconds for each step {host.timings_s}")
            yield host
        print(
            f"the emulated host: its QEMU held at most {host.peak_bytes >> 20} MiB;"
            f" interrupts: {host.interrupts}"
        )
    except UnavailableError as error:
        pytest.skip(str(error))
