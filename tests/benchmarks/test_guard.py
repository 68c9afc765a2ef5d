"""Forks haven't become slower, measured against the floor in the same run; and the guard can fail."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from benchmarks.guests import Floor

import ramet
from benchmarks import guard
from ramet.errors import NotFoundError, UnavailableError
from tests.side_by_side import tell

pytestmark = [
    *(pytest.mark.vm, pytest.mark.anyio, pytest.mark.timeout(300)),
    *(pytest.mark.deep, pytest.mark.alone),
]

_DELAY_S = {"firecracker": 0.03, "qemu": 0.1}
"""Of processor time, two floors' worth or more: a load makes that longer as it does forks."""


@pytest.fixture
def scratch(home: Path) -> Iterator[Path]:
    """Beside the home, on its filesystem: parts are linked."""
    with tempfile.TemporaryDirectory(dir=home.parent) as directory:
        yield Path(directory)


async def prepared(host: ramet.Host, driver: str, scratch: Path) -> tuple[ramet.VM, Floor]:
    """A template and its floor, or a skip."""
    try:
        return await guard.template(host, driver, scratch)
    except (UnavailableError, NotFoundError) as error:
        pytest.skip(error.message)


@pytest.mark.parametrize(("driver", "count"), guard.ALLOWED)
async def test_forks_over_the_floor(host: ramet.Host, driver: str, count: int, scratch: Path) -> None:
    base, floor = await prepared(host, driver, scratch)
    found = await guard.guard(driver, base, floor, count)
    tell(
        f"{driver}: {count} fork(s) in a call over the floor: {found.ratio:.2f} "
        f"({found.low:.2f} to {found.high:.2f}, {found.n} pairs), allowed {guard.ALLOWED[driver, count]:g}"
    )
    assert (reason := guard.verdict(driver, count, found)) is None, reason


@pytest.mark.parametrize("driver", ["firecracker", "qemu"])
async def test_the_guard_notices_a_delay(host: ramet.Host, driver: str, scratch: Path) -> None:
    """A real one, in each of ramet's calls and none of the floor's."""
    base, floor = await prepared(host, driver, scratch)

    async def delay(source: ramet.VM, count: int) -> None:
        until_s = time.process_time() + _DELAY_S[driver]
        while time.process_time() < until_s:
            pass

    found = await guard.guard(driver, base, floor, guard.ONE, delay=delay)
    reason = guard.verdict(driver, guard.ONE, found)
    assert reason is not None, found
    assert "times the floor" in reason
