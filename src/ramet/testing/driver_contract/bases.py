"""Read-only devices: the parts of a container image, which any number of VMMs have open at once."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from ramet.errors import GuestError
from ramet.testing.driver_contract.memory_and_disks import opened_by
from ramet.testing.driver_contract.subject import (
    BASE_BLOCK_BYTES,
    Subject,
    base_content,
    base_word,
    booted,
    restored,
)

pytestmark = [pytest.mark.anyio]

_BLOCKS = (24, 5)


def with_bases(subject: Subject) -> Subject:
    """Return the subject with read-only devices, after a disk where its guest can tell devices apart."""
    if subject.is_linux:
        return dataclasses.replace(subject, base_blocks=_BLOCKS)
    return dataclasses.replace(subject, disk_bytes=0, base_blocks=_BLOCKS[:1])


async def test_bases_are_read_by_a_booted_guest_and_by_forks_that_share_them(
    subject: Subject, place: Path
) -> None:
    """Two forks and their source's files: one inode for each device, opened for reading alone.

    A sector that the source had never read is read by a fork whose source is gone.
    """
    many = with_bases(subject)
    last = many.base_blocks[0] * BASE_BLOCK_BYTES // 512 - 1
    async with booted(many, place / "source") as source:
        async with many.agent(source) as agent:
            for number in range(len(many.base_blocks)):
                assert await many.read_base(agent, number, 3) == base_word(number, 3)
                with pytest.raises(GuestError):
                    await many.write_base(agent, number)
                assert await many.read_base(agent, number, 0) == base_word(number, 0)
            if many.is_linux:
                await many.write(agent, 1)
        frozen = await many.freeze(source)
    inodes = [(frozen.directory / base.file).stat().st_ino for base in frozen.machine.bases]
    async with restored(many, frozen, place / "one") as one, restored(many, frozen, place / "two") as two:
        frozen.remove()
        for vm in (one, two):
            opened = opened_by(vm.vmm.process.pid)
            for base in vm.machine.bases:
                assert opened[vm.directory / base.file] & os.O_ACCMODE == os.O_RDONLY
            assert [(vm.directory / base.file).stat().st_ino for base in vm.machine.bases] == inodes
            async with many.agent(vm) as agent:
                for number in range(len(many.base_blocks)):
                    assert await many.read_base(agent, number, 9) == base_word(number, 9)
                    with pytest.raises(GuestError):
                        await many.write_base(agent, number)
                assert await many.read_base(agent, 0, last) == base_word(0, last)
                if many.is_linux:
                    assert await many.read(agent) == (1, 1)
        for number, base in enumerate(one.machine.bases):
            assert (one.directory / base.file).read_bytes() == base_content(number, base.blocks)


async def test_another_base_is_another_machine(subject: Subject) -> None:
    """A vmstate fits the machine that it was saved from: its devices are in its arguments, in order."""
    many = with_bases(subject)
    plain = dataclasses.replace(many, base_blocks=())
    driver = subject.driver
    assert driver.arguments(many.machine()) != driver.arguments(plain.machine())
    assert driver.arguments(driver.for_cold_start(many.machine())) == driver.arguments(many.machine())
