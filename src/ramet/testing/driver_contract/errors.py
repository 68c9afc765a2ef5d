"""Failures: one error that names the cause, and no process left."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import anyio
import pytest

from ramet.errors import UnavailableError, VmmError
from ramet.paths import KERNEL_FILE, MEM_FILE, VMSTATE_FILE
from ramet.testing.driver_contract.subject import Frozen, Subject, restored
from ramet.testing.leftovers import living_in

pytestmark = [pytest.mark.anyio]


async def test_a_missing_program(subject: Subject, place: Path) -> None:
    driver = subject.with_program("/nowhere/vmm")
    with pytest.raises(UnavailableError, match="/nowhere/vmm") as caught:
        await driver.version()
    assert caught.value.hint


async def test_a_program_that_is_something_else(subject: Subject, place: Path) -> None:
    driver = subject.with_program("/bin/true")
    with pytest.raises(UnavailableError, match="/bin/true"):
        await driver.version()


async def test_a_kernel_that_is_missing_or_none(subject: Subject, place: Path) -> None:
    machine = subject.prepare(place / "vm")
    kernel = place / "vm" / KERNEL_FILE
    kernel.unlink()
    with pytest.raises(VmmError):
        await subject.driver.boot(place / "vm", machine)
    kernel.write_bytes(os.urandom(65536))
    with pytest.raises(VmmError):
        await subject.driver.boot(place / "vm", machine)
    assert living_in(place) == []


async def test_a_missing_mem_file_is_not_made(subject: Subject, frozen: Frozen, place: Path) -> None:
    machine = subject.link(frozen, place / "vm")
    (place / "vm" / MEM_FILE).unlink()
    with pytest.raises(VmmError, match=MEM_FILE):
        await subject.driver.restore(place / "vm", machine)
    assert not (place / "vm" / MEM_FILE).exists()
    assert living_in(place) == []


async def test_a_vmstate_that_is_cut_short_or_noise(subject: Subject, frozen: Frozen, place: Path) -> None:
    whole = (frozen.directory / VMSTATE_FILE).read_bytes()
    for number, content in enumerate((whole[: len(whole) // 2], os.urandom(len(whole)), b"")):
        directory = place / f"vm{number}"
        machine = subject.link(frozen, directory)
        (directory / VMSTATE_FILE).unlink()
        (directory / VMSTATE_FILE).write_bytes(content)
        vmm = await subject.driver.restore(directory, machine)
        try:
            with anyio.fail_after(60), pytest.raises(VmmError):
                await vmm.load_vmstate(VMSTATE_FILE)
        finally:
            await vmm.kill()
    assert living_in(place) == []
    assert (frozen.directory / VMSTATE_FILE).read_bytes() == whole


async def test_a_mem_file_of_another_size(subject: Subject, frozen: Frozen, place: Path) -> None:
    machine = subject.link(frozen, place / "vm")
    mem = place / "vm" / MEM_FILE
    mem.unlink()
    mem.touch(0o600)
    os.truncate(mem, machine.memory_bytes // 2)
    with pytest.raises(VmmError):
        vmm = await subject.driver.restore(place / "vm", machine)
        try:
            await vmm.load_vmstate(VMSTATE_FILE)
        finally:
            await vmm.kill()
    assert living_in(place) == []


async def test_what_a_dead_one_left_is_not_in_the_way(subject: Subject, frozen: Frozen, place: Path) -> None:
    """Sockets that a killed VMM left in the directory: the next one starts all the same."""
    async with restored(subject, frozen, place / "vm") as vm:
        await vm.vmm.kill()
    again = await subject.driver.restore(place / "vm", vm.machine)
    try:
        await again.load_vmstate(VMSTATE_FILE)
        await again.resume()
        assert await again.status() == "running"
    finally:
        await again.kill()
    shutil.rmtree(place / "vm")
