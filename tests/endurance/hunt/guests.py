"""The two kinds of guests that are hunted: how patterns get into them, and how they are looked for."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from random import Random
from typing import Protocol

import anyio

import ramet
from ramet.model.record import Record
from tests.endurance.hunt.model import ZERO, Contents, Family, Page

PAGE = 4096
EXEC_LIMIT_S = 60.0


class CorruptionError(AssertionError):
    """Something holds what it must not hold, or is where nothing may be."""


def require(holds: bool, what: str) -> None:
    """Raise `CorruptionError` unless it holds."""
    if not holds:
        raise CorruptionError(what)


class Kind(Protocol):
    """A kind of guest. Its last two pages and its last sector are for a busy writer alone."""

    pages: int
    sectors: int

    async def boot(self, host: ramet.Host, name: str) -> ramet.VM:
        """A new guest whose hunted part is zeros."""

    async def awake(self, vm: ramet.VM) -> None:
        """To be called after a boot, before anything is written."""

    async def write(self, vm: ramet.VM, contents: Contents, family: Family, chance: Random) -> int:
        """Write here and there, and note it in `contents` as soon as the guest has said that it is done."""

    async def check(self, vm: ramet.VM, contents: Contents, chance: Random, *, deep: bool) -> None:
        """Ask the guest what it has. Raises `CorruptionError`."""

    def look(self, record: Record, directory: Path, contents: Contents, *, memory: bool) -> None:
        """Look at what can be seen from outside, also of one that can't be asked. Raises as `check`."""

    async def put(self, vm: ramet.VM, place: int, number: int) -> None:
        """Write a number to one of the busy writer's places: 0, 1 are pages, 2 is the sector."""

    async def get(self, vm: ramet.VM) -> tuple[int, int, int]:
        """What is in the busy writer's places."""

    def note(self, contents: Contents, numbers: tuple[int, int, int]) -> None:
        """`contents` has these in the busy writer's places."""


def _some_pages(chance: Random, pages: int, longest: int) -> tuple[int, int]:
    """First page and how many: near each other mostly, so that pages are written again and runs meet."""
    length = chance.choice((1, 1, 1, 1, 2, 3, 8, longest))
    limit = pages - 2 - length
    if chance.random() < 0.2:
        return chance.randrange(limit + 1), length
    start = chance.choice((0, 15, 60, pages // 2 - 4, pages - 24))
    return min(limit, start + chance.randrange(12)), length


async def _ask(vm: ramet.VM, *argv: str) -> str:
    result = await vm.exec(*argv, timeout=EXEC_LIMIT_S, check=True)
    return result.text


class Probe:
    """The bare-metal guest under Firecracker: the 16 MiB above the probe itself, and a raw disk."""

    pages = 4096
    sectors = 256
    _start = 0x1000000
    _disk_bytes = 1 << 20

    async def boot(self, host: ramet.Host, name: str) -> ramet.VM:
        return await host.run(
            "probe", driver="firecracker", name=name, memory="32M", disks=[self._disk_bytes]
        )

    async def awake(self, vm: ramet.VM) -> None:
        pass

    def _address(self, page: int) -> str:
        return hex(self._start + page * PAGE)

    async def write(self, vm: ramet.VM, contents: Contents, family: Family, chance: Random) -> int:
        done = chance.randint(1, 6)
        for _ in range(done):
            number = 0 if chance.random() < 0.2 else family.number()
            kind = chance.random()
            if kind < 0.2:
                sector = chance.randrange(self.sectors - 1)
                await _ask(vm, "bpoke", hex(sector), hex(number))
                contents.disk[sector] = number
            elif kind < 0.45:
                page, _ = _some_pages(chance, self.pages, 1)
                word = chance.choice((0, 1, 511, chance.randrange(512)))
                address = self._start + page * PAGE + word * 8
                await _ask(vm, "poke", hex(address), hex(number))
                contents.memory[page] = contents.memory.get(page, ZERO).with_word(word, number)
            else:
                page, length = _some_pages(chance, self.pages, 200)
                await _ask(vm, "fill", self._address(page), hex(length), hex(number))
                contents.memory |= {page + index: Page(number) for index in range(length)}
        return done

    async def check(self, vm: ramet.VM, contents: Contents, chance: Random, *, deep: bool) -> None:
        # Which page it is that differs, `look` finds out.
        wanted = sum(page.sum for page in contents.memory.values()) % (1 << 64)
        questions = [("sum", self._address(0), hex(self.pages), wanted)]
        known = list(contents.memory)
        for page in chance.sample(known, min(6 if deep else 1, len(known))):
            questions.append(("sum", self._address(page), "1", contents.memory[page].sum))
        sectors = list(contents.disk)
        for sector in chance.sample(sectors, min(3 if deep else 1, len(sectors))):
            questions.append(("bpeek", hex(sector), "", contents.disk[sector]))

        async def ask(verb: str, place: str, count: str, expected: int) -> None:
            found = int(await _ask(vm, *(word for word in (verb, place, count) if word)), 16)
            require(found == expected, f"{vm.name}: {verb} {place} {count} is {found:#x}, not {expected:#x}")

        # Side by side, they share a connection.
        async with anyio.create_task_group() as tasks:
            for question in questions:
                tasks.start_soon(ask, *question)

    def look(self, record: Record, directory: Path, contents: Contents, *, memory: bool) -> None:
        (disk,) = record.machine.disks
        found = (directory / disk.file).read_bytes()
        for sector in range(self.sectors):
            expected = contents.disk.get(sector, 0).to_bytes(8, "little") * 64
            if found[sector * 512 : sector * 512 + 512] != expected:
                raise CorruptionError(f"{record.name}: {disk.file} has another sector {sector}")
        require(
            not found[self.sectors * 512 :].strip(b"\0"), f"{record.name}: its disk has more than was written"
        )
        if memory and record.vmm is not None:
            self._look_at_memory(record, contents)

    def _look_at_memory(self, record: Record, contents: Contents) -> None:
        assert record.vmm is not None
        (ram,) = record.vmm.ram
        descriptor = os.open(f"/proc/{record.vmm.process.pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        try:
            length = self.pages * PAGE
            found = os.pread(descriptor, length, ram.host_start + self._start - ram.file_offset)
        finally:
            os.close(descriptor)
        wanted = bytearray(length)
        for page, expected in contents.memory.items():
            wanted[page * PAGE : page * PAGE + PAGE] = expected.encoded()
        if found != wanted:
            bad = [
                page
                for page in range(self.pages)
                if found[page * PAGE : page * PAGE + PAGE] != wanted[page * PAGE : page * PAGE + PAGE]
            ]
            raise CorruptionError(f"{record.name}: in its VMM's memory {len(bad)} pages differ: {bad[:20]}")

    async def put(self, vm: ramet.VM, place: int, number: int) -> None:
        if place == 2:
            await _ask(vm, "bpoke", hex(self.sectors - 1), hex(number))
        else:
            await _ask(vm, "fill", self._address(self.pages - 2 + place), "1", hex(number))

    async def get(self, vm: ramet.VM) -> tuple[int, int, int]:
        first = await _ask(vm, "peek", self._address(self.pages - 2))
        second = await _ask(vm, "peek", self._address(self.pages - 1))
        third = await _ask(vm, "bpeek", hex(self.sectors - 1))
        return int(first, 16), int(second, 16), int(third, 16)

    def note(self, contents: Contents, numbers: tuple[int, int, int]) -> None:
        contents.memory[self.pages - 2] = Page(numbers[0])
        contents.memory[self.pages - 1] = Page(numbers[1])
        contents.disk[self.sectors - 1] = numbers[2]


_LINUX_MEMORY = "/tmp/hunted"


class Linux:
    """The built-in guest: a file in its memory, and a disk without a filesystem, in blocks of 4 KiB."""

    pages = 256
    sectors = 64

    def __init__(self, driver: str) -> None:
        self._driver = driver

    async def boot(self, host: ramet.Host, name: str) -> ramet.VM:
        vm = await host.run("builtin", driver=self._driver, name=name, memory="96M", disks=["4M"])
        await self.awake(vm)
        return vm

    async def awake(self, vm: ramet.VM) -> None:
        await self._run(vm, f"head -c {self.pages * PAGE} /dev/zero > {_LINUX_MEMORY}; test -b /dev/vda")

    async def _run(self, vm: ramet.VM, script: str) -> str:
        return await _ask(vm, "sh", "-ec", script)

    def _fill(self, place: int, length: int, number: int, *, disk: bool) -> str:
        source = f"yes {number:07}" if number else "cat /dev/zero"
        end = "of=/dev/vda conv=notrunc,fsync" if disk else f"of={_LINUX_MEMORY} conv=notrunc"
        size = length * PAGE
        copy = f"dd bs={size} iflag=fullblock oflag=seek_bytes seek={place * PAGE} {end} 2>/dev/null"
        return f"{source} | head -c {size} | {copy}; "

    async def write(self, vm: ramet.VM, contents: Contents, family: Family, chance: Random) -> int:
        done = chance.randint(1, 6)
        script = ""
        for _ in range(done):
            number = 0 if chance.random() < 0.2 else family.number()
            if chance.random() < 0.4:
                block = chance.randrange(self.sectors - 1)
                script += self._fill(block, 1, number, disk=True)
                contents.disk[block] = number
            else:
                page, length = _some_pages(chance, self.pages, 40)
                script += self._fill(page, length, number, disk=False)
                contents.memory |= {page + index: Page(number) for index in range(length)}
        await self._run(vm, script)
        return done

    def _expected(self, numbers: dict[int, int], count: int) -> str:
        total = hashlib.md5()
        for place in range(count):
            total.update(_pattern(numbers.get(place, 0)))
        return total.hexdigest()

    async def check(self, vm: ramet.VM, contents: Contents, chance: Random, *, deep: bool) -> None:
        size = self.sectors * PAGE
        said = await self._run(
            vm,
            f"md5sum < {_LINUX_MEMORY}; echo 1 > /proc/sys/vm/drop_caches;"
            f" head -c {size} /dev/vda | md5sum; hostname",
        )
        memory, _, disk, _, name = said.split()
        wanted = self._expected({page: one.number for page, one in contents.memory.items()}, self.pages)
        require(memory == wanted, f"{vm.name}: its memory has another digest than what was written")
        wanted = self._expected(contents.disk, self.sectors)
        require(disk == wanted, f"{vm.name}: its disk has another digest than what was written")
        require(name == vm.name, f"{vm.name} takes itself for {name}")

    def look(self, record: Record, directory: Path, contents: Contents, *, memory: bool) -> None:
        pass

    async def put(self, vm: ramet.VM, place: int, number: int) -> None:
        if place == 2:
            await self._run(vm, self._fill(self.sectors - 1, 1, number, disk=True))
        else:
            await self._run(vm, self._fill(self.pages - 2 + place, 1, number, disk=False))

    async def get(self, vm: ramet.VM) -> tuple[int, int, int]:
        pages = (
            f"dd if={_LINUX_MEMORY} bs={PAGE} skip={self.pages - 2 + place} count=1 2>/dev/null | head -n 1; "
            for place in (0, 1)
        )
        sector = f"dd if=/dev/vda bs={PAGE} skip={self.sectors - 1} count=1 2>/dev/null | head -n 1"
        first, second, third = (await self._run(vm, "".join(pages) + sector)).split()
        return int(first), int(second), int(third)

    def note(self, contents: Contents, numbers: tuple[int, int, int]) -> None:
        contents.memory[self.pages - 2] = Page(numbers[0])
        contents.memory[self.pages - 1] = Page(numbers[1])
        contents.disk[self.sectors - 1] = numbers[2]


def _pattern(number: int) -> bytes:
    if number == 0:
        return bytes(PAGE)
    # Eight bytes, so that each page begins with a line.
    return f"{number:07}\n".encode() * (PAGE // 8)
