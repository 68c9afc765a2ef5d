"""The guests that this machine can run, or a skip with the reason."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

import ramet
from ramet.model import protocols
from tests import machines
from tests.support.guests import Guest
from tests.support.probes import make_template, probes
from tests.support.ready import Ready

__all__ = ["make_template", "probes"]


async def require(driver: str, image: str) -> Guest:
    """That guest, or a skip."""
    await machines.require(driver, image)
    return Guest(driver, image)


@pytest.fixture(params=machines.ONE_GUEST_PER_DRIVER, ids=lambda pair: pair[0])
async def guest(request: pytest.FixtureRequest) -> Guest:
    """Linux on QEMU, and the probe on Firecracker."""
    return await require(*request.param)


@pytest.fixture
async def linux() -> Guest:
    """Linux on QEMU."""
    return await require("qemu", "builtin")


@pytest.fixture
async def probe() -> Guest:
    """The probe on Firecracker."""
    return await require("firecracker", "probe")


@pytest.fixture
async def host_and_snapshots(home: Path) -> AsyncIterator[protocols.Host]:
    """An open Host on a home of its own, whose snapshots are removed after the test.

    A file that wants no other says `host = host_and_snapshots`.
    """
    async with ramet.Host(home) as opened:
        yield opened
        for snapshot in await opened.snapshots():
            await (await opened.snapshot(snapshot.id)).remove()


@pytest.fixture(scope="session")
def ready(homes: Path) -> Iterator[Ready]:
    """Makes running guests without a boot each."""
    with tempfile.TemporaryDirectory(dir=homes, prefix="ready-") as directory:
        yield Ready(Path(directory))


@pytest.fixture
async def source(guest: Guest, host: ramet.Host, ready: Ready) -> ramet.VM:
    """A running guest whose memory has a base. Of what it was forked from nothing is left."""
    return await ready(host, image=guest.image, driver=guest.driver, disks=("16M",))
