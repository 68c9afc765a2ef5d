"""Sizes that no VMM takes as they are."""

from __future__ import annotations

import anyio
import pytest

import ramet
from ramet.drivers.firecracker.driver import Firecracker
from ramet.drivers.qemu.driver import Qemu
from ramet.errors import UnavailableError, UsageError
from ramet.model import protocols
from ramet.units import MIB


@pytest.mark.anyio
@pytest.mark.parametrize("kind", [Qemu, Firecracker])
async def test_memory_is_rounded_up_to_what_the_driver_takes(kind: type[Qemu] | type[Firecracker]) -> None:
    driver = kind()
    try:
        await driver.version()
    except UnavailableError as error:
        pytest.skip(str(error))
    quantum = driver.memory_quantum_bytes
    for asked in (128 * MIB, 128 * MIB + 1, 200_000_000, 200_003_584, 256 * MIB - 1):
        machine = driver.machine(accelerator="tcg", memory_bytes=asked, cpus=1)
        assert machine.memory_bytes % quantum == 0
        assert asked <= machine.memory_bytes < asked + quantum
        assert sum(region.length_bytes for region in driver.ram_regions(machine)) == machine.memory_bytes


@pytest.mark.vm
@pytest.mark.anyio
@pytest.mark.parametrize("memory", [200_000_000, pytest.param(128 * MIB + 4096, marks=pytest.mark.deep)])
async def test_an_odd_size_boots_forks_and_is_shown_rounded(host: ramet.Host, memory: int) -> None:
    vm = await host.run(memory=memory, driver="qemu")
    shown = (await vm.info()).memory_bytes
    assert shown % Qemu.memory_quantum_bytes == 0
    assert memory <= shown < memory + Qemu.memory_quantum_bytes
    assert (vm.directory / "mem").stat().st_size == shown
    base = await vm.template()
    async with base.fork() as (fork,):
        assert (await fork.exec("echo", "here")).text == "here\n"
        assert (await fork.info()).memory_bytes == shown


@pytest.mark.anyio
async def test_more_cpus_than_a_guest_can_have_are_refused(host: protocols.Host) -> None:
    for cpus in (0, -1, 65, 2**40):
        with anyio.fail_after(20), pytest.raises(UsageError, match="virtual CPUs"):
            await host.run(cpus=cpus)
    assert await host.list(everything=True) == []
