"""The guests of these tests: each remembers numbers in slots of its memory and of its disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import ramet
from ramet.model import protocols
from ramet.units import MIB

_MEMORY = 0x4000000
"""Guest RAM that the probe leaves alone: 64 MiB and up."""
_PAGE = 4096
_SECTORS = 8


@dataclass(frozen=True)
class Guest:
    """A kind of guest on a driver."""

    driver: str
    image: str

    @property
    def is_linux(self) -> bool:
        """Whether it has a shell."""
        return self.image != "probe"

    async def boot(self, host: ramet.Host, *, memory: str = "128M", disk: str = "16M") -> ramet.VM:
        """One with a disk."""
        return await host.run(self.image, driver=self.driver, memory=memory, disks=[disk])

    async def write(self, vm: protocols.VM, slot: int, value: int) -> None:
        """Have it remember a number, in memory and on its disk."""
        if self.is_linux:
            script = (
                f"echo {value} > /run/slot-{slot}"
                f" && echo {value} | dd of=/dev/vda bs={_PAGE} seek={slot} conv=notrunc,fsync 2> /dev/null"
            )
            await vm.exec("sh", "-c", script, check=True, timeout=60)
        else:
            await vm.exec("poke", hex(_MEMORY + slot * _PAGE), hex(value), check=True, timeout=60)
            await vm.exec("bpoke", hex(slot * _SECTORS), hex(value), check=True, timeout=60)

    async def read(self, vm: protocols.VM, slots: int) -> tuple[list[int], list[int]]:
        """The numbers in its first slots: those in memory, those on the disk. 0: none was ever written."""
        if self.is_linux:
            script = (
                f"i=0; while [ $i -lt {slots} ]; do cat /run/slot-$i 2> /dev/null || echo 0;"
                f" dd if=/dev/vda bs={_PAGE} skip=$i count=1 2> /dev/null | tr '\\0' '\\n' | head -n 1"
                " | grep . || echo 0; i=$((i + 1)); done"
            )
            said = (await vm.exec("sh", "-c", script, check=True, timeout=60)).text.split()
            return [int(number) for number in said[::2]], [int(number) for number in said[1::2]]
        memory: list[int] = []
        disk: list[int] = []
        for slot in range(slots):
            for into, command in (
                (memory, ("peek", hex(_MEMORY + slot * _PAGE))),
                (disk, ("bpeek", hex(slot * _SECTORS))),
            ):
                into.append(int((await vm.exec(*command, check=True, timeout=60)).text.split()[0], 16))
        return memory, disk

    async def change(self, vm: protocols.VM, mib: int) -> None:
        """Have it change so much of its memory."""
        if self.is_linux:
            script = f"head -c {mib * MIB} /dev/urandom > /tmp/filled"
            await vm.exec("sh", "-c", script, check=True, timeout=60)
        else:
            words = ("fill", hex(_MEMORY + 16 * MIB), hex(mib * MIB // _PAGE), "0x5a5a")
            await vm.exec(*words, check=True, timeout=60)

    async def sum(self, vm: protocols.VM, mib: int) -> str:
        """What `change` made, in short."""
        if self.is_linux:
            return (await vm.exec("md5sum", "/tmp/filled", check=True, timeout=60)).text
        words = ("sum", hex(_MEMORY + 16 * MIB), hex(mib * MIB // _PAGE))
        return (await vm.exec(*words, check=True, timeout=60)).text


def io_of(pid: int | str) -> dict[str, int]:
    """proc(5), /proc/PID/io."""
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return {key: int(value) for key, value in (line.split(": ") for line in lines)}


def own_bytes(directory: Path) -> dict[str, int]:
    """What the files in a directory that nobody else has a link to occupy, by name."""
    found = {path.name: path.stat() for path in directory.iterdir() if path.is_file()}
    return {name: facts.st_blocks * 512 for name, facts in found.items() if facts.st_nlink == 1}


async def pid_of(vm: protocols.VM) -> int:
    """Of its VMM."""
    pid = (await vm.info()).pid
    assert pid is not None
    return pid
