"""A home with one template, `base`, on each driver; its guest has a value in its RAM and one on its disk."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

import ramet
from ramet.errors import NotFoundError, UnavailableError
from ramet.model import protocols
from ramet.model.schema import PoolEntry, PoolReport
from tests.conftest import assert_nothing_left, living_in
from tests.support.probes import DATA_ADDRESS

IDLE_LIMIT_S = 60.0
MEMORY_VALUE, DISK_VALUE = 0x1111, 0x2222


@dataclass(frozen=True)
class Guests:
    """How the guests of a driver are booted, and keep a number in their RAM and on their disk."""

    driver: str
    image: str
    memory: str

    @property
    def is_linux(self) -> bool:
        """Whether there is a shell."""
        return self.image == "builtin"

    async def boot(self, host: ramet.Host, name: str) -> ramet.VM:
        """One that runs, with both values."""
        disks = ["16M"] if self.is_linux else []
        vm = await host.run(self.image, driver=self.driver, name=name, memory=self.memory, disks=disks)
        await self.write(vm, MEMORY_VALUE)
        await self.write_disk(vm, DISK_VALUE)
        return vm

    async def write(self, vm: protocols.VM, value: int) -> None:
        """Put a number into its RAM."""
        if self.is_linux:
            await vm.exec("sh", "-c", f"echo {value} > /tmp/value", check=True)
        else:
            await vm.exec("fill", hex(DATA_ADDRESS), "0x10", hex(value), check=True)

    async def read(self, vm: protocols.VM) -> int:
        """The number in its RAM."""
        if self.is_linux:
            return int((await vm.exec("cat", "/tmp/value", check=True)).text)
        return int((await vm.exec("peek", hex(DATA_ADDRESS), check=True)).text, 16)

    async def write_disk(self, vm: protocols.VM, value: int) -> None:
        """Put a number onto its disk."""
        if self.is_linux:
            await vm.exec("sh", "-c", f"echo {value} > /dev/vda && sync", check=True)
        else:
            await vm.exec("bpoke", "3", hex(value), check=True)

    async def read_disk(self, vm: protocols.VM) -> int:
        """The number on its disk."""
        if self.is_linux:
            return int((await vm.exec("head", "-n", "1", "/dev/vda", check=True)).text)
        return int((await vm.exec("bpeek", "3", check=True)).text.split()[0], 16)


FIRECRACKER = Guests("firecracker", "probe", "128M")
QEMU = Guests("qemu", "builtin", "128M")
QEMU_IN_THE_DEEP_TIER = pytest.mark.parametrize(
    "guests",
    [FIRECRACKER, pytest.param(QEMU, marks=pytest.mark.deep)],
    ids=lambda subject: subject.driver,
    indirect=True,
)
"""A mark for a test of the pool's own bookkeeping, to which one driver is as good as the other."""


@pytest.fixture(scope="session", params=[FIRECRACKER, QEMU], ids=lambda subject: subject.driver)
def guests(request: pytest.FixtureRequest) -> Guests:
    """Of either driver."""
    found: Guests = request.param
    return found


@pytest.fixture(scope="session")
async def pool_home(homes: Path, guests: Guests, anyio_backend: str) -> AsyncIterator[Path]:
    """The home. Tests leave in it what they found: `base`, and no process."""
    async for home in _home(homes, guests):
        yield home


@pytest.fixture(scope="session")
async def probe_home(homes: Path, anyio_backend: str) -> AsyncIterator[Path]:
    """As `pool_home`, for what doesn't depend on the driver."""
    async for home in _home(homes, FIRECRACKER):
        yield home


async def _home(homes: Path, guests: Guests) -> AsyncIterator[Path]:
    directory = Path(tempfile.mkdtemp(dir=homes, prefix="pool-"))
    async with ramet.Host(directory) as host:
        try:
            vm = await guests.boot(host, "base")
        except (UnavailableError, NotFoundError) as error:
            pytest.skip(error.message)
        await (await vm.template()).detach()
    yield directory
    async with ramet.Host(directory) as host:
        await (await host.get("base")).remove()
    assert_nothing_left(directory)


@pytest.fixture(autouse=True)
def _nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test of a pool ends with none."""
    names = [name for name in ("pool_home", "probe_home") if name in request.fixturenames]
    homes: list[Path] = [request.getfixturevalue(name) for name in names]
    yield
    for home in homes:
        assert living_in(home) == []
        assert not (home / "pool").exists()
        assert len(list((home / "instances").iterdir())) == 1


async def idle_pool(host: protocols.Host) -> PoolReport:
    """The pool, once its controller has nothing more to do."""
    return await host.pool(wait=IDLE_LIMIT_S)


async def filled(host: protocols.Host, count: int, *, source: str | None = "base") -> list[PoolEntry]:
    """At least so many that wait with the guest of `source`, or without a guest."""
    with anyio.fail_after(IDLE_LIMIT_S):
        while True:
            found = [
                entry
                for entry in (await host.pool(wait=IDLE_LIMIT_S)).entries
                if entry.state == "ready" and entry.source_name == source
            ]
            if len(found) >= count:
                return found
            await anyio.sleep(0.02)


async def fork(host: ramet.Host, name: str = "base", count: int = 1) -> list[ramet.VM]:
    """Forks of what is called so."""
    return await (await host.get(name)).fork(count)
