"""The guests that benchmarks fork, the floor beside them, and what a process costs.

Linux on QEMU, the probe on Firecracker. Templates are made once and shared by the benchmarks of a run.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from stat import S_ISDIR
from typing import Any, Final

import anyio

import ramet
from benchmarks import floor
from ramet import config
from ramet.drivers.firecracker.driver import Firecracker
from ramet.engine.fork import call as engine_fork
from ramet.guest.agent_binary import probe_path
from ramet.units import MIB

DRIVERS: Final = ("firecracker", "qemu")
DATA_ADDRESS: Final = 0x4000000
"""RAM that the probe leaves to its caller: 64 MiB and up."""
HOLE: Final = (0xD0000000, 1 << 32)
"""Firecracker has no RAM there: it goes on at 4 GiB."""
PAGE: Final = 4096
_CACHESTAT: Final = 451
LONG_S: Final = 120.0
POOL_LIMIT_S: Final = 30.0


class Clock:
    """Milliseconds since it was made."""

    def __init__(self) -> None:
        self._started = time.perf_counter()

    @property
    def ms(self) -> float:
        return 1000 * (time.perf_counter() - self._started)


async def boot(host: ramet.Host, driver: str, memory: str | int, *, touched_bytes: int = 0) -> ramet.VM:
    """A running guest that has written so much of its RAM, not with zeros."""
    image = "builtin" if driver == "qemu" else "probe"
    vm = await host.run(image, driver=driver, memory=memory, cold=True)
    if touched_bytes:
        await touch(vm, driver, touched_bytes)
    return vm


async def touch(vm: ramet.VM, driver: str, size_bytes: int, name: str = "data") -> None:
    """Have the guest write so much memory: a file of its tmpfs, or pages from `DATA_ADDRESS` on."""
    if driver == "qemu":
        # A piece is made once and then only copied: an emulated guest draws random bytes at 20 MiB/s.
        piece = min(size_bytes, 4 * MIB)
        script = (
            "mkdir -p /tmp/touched"
            " && { mountpoint -q /tmp/touched || mount -t tmpfs -o size=100% touched /tmp/touched; }"
            f" && head -c {piece} /dev/urandom > /tmp/touched/piece && i=0"
            f" && while [ $i -lt {-(-size_bytes // piece)} ]; do cat /tmp/touched/piece; i=$((i + 1)); done"
            f" > /tmp/touched/{name} && rm /tmp/touched/piece"
        )
        await vm.exec("sh", "-c", script, check=True, timeout=LONG_S)
    else:
        low = min(size_bytes, HOLE[0] - DATA_ADDRESS)
        for address, length in ((DATA_ADDRESS, low), (HOLE[1], size_bytes - low)):
            if length:
                words = (hex(address), hex(length // PAGE), "0x5a5a")
                await vm.exec("fill", *words, check=True, timeout=LONG_S)


async def work(vm: ramet.VM, driver: str, size_bytes: int) -> None:
    """As `touch`, with what memory usually has in it: text, programs and, a third, what can't be
    compressed. Nothing that is there twice lies within 4 MiB.
    """
    if driver != "qemu":
        return await touch(vm, driver, size_bytes)
    script = (
        "mkdir -p /tmp/work && mount -t tmpfs -o size=100% work /tmp/work && cd /tmp/work"
        " && { head -c 1398102 /dev/urandom; head -c 1398101 /proc/kallsyms; head -c 1398101 /bin/busybox; }"
        f" > piece && i=0 && while [ $i -lt {-(-size_bytes // (4 * MIB))} ]; do cat piece; i=$((i + 1)); done"
        " > all && rm piece"
    )
    await vm.exec("sh", "-c", script, check=True, timeout=LONG_S)
    return None


def concurrency() -> int:
    """How many forks of one call the engine has under way at once: the floor's of many has as many."""
    return engine_fork.at_once()


class Floor:
    """Forks without ramet, of the same template, in rounds of one call each."""

    def __init__(self, driver: str, template: Path, directory: Path) -> None:
        self._directory = directory
        self._rounds = 0
        directory.mkdir(parents=True)
        source = directory / "source"
        self.vmm: floor.Firecracker | floor.Qemu
        if driver == "qemu":
            self.vmm = floor.Qemu(config.qemu_binary(), template, source)
        else:
            source.mkdir()
            for part in template.iterdir():
                if part.name in (*floor.PARTS, floor.DISK):
                    (source / part.name).hardlink_to(part)
            self.vmm = floor.Firecracker(Firecracker().program(), source)

    def once(self) -> float:
        """One fork, from the link to the guest's answer, in milliseconds."""
        return float(self.round(1, 1)["times_ms"][0]["total"])

    def round(self, forks: int, at_once: int) -> dict[str, Any]:
        """As `floor.round_of`."""
        self._rounds += 1
        return floor.round_of(self.vmm, self._directory / str(self._rounds), forks, at_once)


def firecracker_parts() -> tuple[str, Path]:
    """The program and the probe."""
    return Firecracker().program(), Path(str(probe_path()))


def cpu_s(pids: Iterable[int]) -> float:
    """Processor time of those processes so far."""
    return sum(floor.cpu_of(pid) for pid in pids)


def memory_of(pid: int | str) -> dict[str, int]:
    """smaps_rollup of a process, in bytes by the kernel's names (proc(5))."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines}


def disk_bytes(directory: Path) -> int:
    """What a directory occupies that nobody else has a link to."""
    facts = [path.lstat() for path in directory.rglob("*")]
    return 512 * sum(fact.st_blocks for fact in facts if fact.st_nlink == 1 or S_ISDIR(fact.st_mode))


def free_bytes(directory: Path) -> int:
    """What the filesystem has for us."""
    facts = os.statvfs(directory)
    return facts.f_bavail * facts.f_frsize


def cached_bytes(file: Path) -> int:
    """How much of a file is in the page cache (cachestat, Linux 6.5); before that, all that it occupies."""

    class Everything(ctypes.Structure):
        _fields_ = (("offset", ctypes.c_uint64), ("length", ctypes.c_uint64))

    class State(ctypes.Structure):
        _fields_ = tuple(
            (name, ctypes.c_uint64) for name in ("cache", "dirty", "writeback", "evicted", "recent")
        )

    state = State()
    with file.open("rb") as opened:
        libc = ctypes.CDLL(None)
        done = libc.syscall(_CACHESTAT, opened.fileno(), ctypes.byref(Everything()), ctypes.byref(state), 0)
    return PAGE * int(state.cache) if done == 0 else 512 * file.stat().st_blocks


def drop_from_cache(file: Path) -> None:
    """Have the kernel forget a file's pages; those that a process has mapped stay."""
    with file.open("rb") as opened:
        os.fdatasync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@asynccontextmanager
async def pool(home: Path, warm: int) -> AsyncIterator[ramet.Host]:
    """A Host that keeps so many VMMs warm, on a home of its own: all who have it open are handed them."""
    async with ramet.Host(home, warm=warm) as host:
        yield host


async def filled(host: ramet.Host, source: str) -> int:
    """Wait until the pool has nothing more to do, and something for forks of `source`. How much that is.

    Raises `TimeoutError`.
    """
    with anyio.fail_after(POOL_LIMIT_S):
        while True:
            entries = (await host.pool(wait=POOL_LIMIT_S)).entries
            ready = [entry for entry in entries if entry.state == "ready" and entry.source in {source, None}]
            if ready:
                return len(ready)
            await anyio.sleep(0.02)
