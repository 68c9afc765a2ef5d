"""The subject of the contract suite: a driver, a guest that it boots, and how to tell two guests apart.

Nothing of the engine: a driver, files and the guest's agent alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import msgspec

from ramet.disk.volumes import fork_disk, make_disk
from ramet.drivers.interface import Ability, Driver, SavesSnapshot, SavesState, Vmm
from ramet.errors import GuestError, GuestLostError
from ramet.guest.client import AgentClient, run_exec
from ramet.guest.messages import ExecRequest, IdentityReply, IdentityRequest
from ramet.guest.ports import claim_port
from ramet.guest.vsock import connect_vsock
from ramet.images.image import Image
from ramet.memory.delta import compact, write_delta
from ramet.memory.holes import punch_holes
from ramet.memory.mappings import find_mapping, identity_of
from ramet.memory.pagemap import changed_runs
from ramet.memory.pages import LivePages
from ramet.model.record import Base, Machine
from ramet.paths import INITRAMFS_FILE, KERNEL_FILE, MEM_FILE, VMSTATE_FILE
from ramet.system.files import new_file
from ramet.system.share import link_or_copy
from ramet.units import MIB

BOOT_LIMIT_S = 120.0
ANSWER_LIMIT_S = 60.0
BASE_BLOCK_BYTES = 4096
_MARK_ADDRESS = 0x3000000


@dataclass
class Subject:
    """A driver with a kind of guest. Subclass it for machines with other devices."""

    driver: Driver
    image: Image
    accelerator: str
    memory_bytes: int = 128 * MIB
    disk_bytes: int = MIB
    """Of its disk; 0: it has none."""
    base_blocks: tuple[int, ...] = ()
    """The lengths of its read-only devices."""
    version: str = ""

    @property
    def is_linux(self) -> bool:
        """True where the guest has a shell."""
        return self.image.guest == "linux"

    def with_program(self, program: str) -> Driver:
        """Return the same driver with `program` as its VMM. Override it if the class takes something else."""
        kind: Any = type(self.driver)
        driver: Driver = kind(program)
        return driver

    def machine(self) -> Machine:
        """Describe a machine with one small disk, and the read-only devices."""
        machine = self.driver.machine(
            accelerator=self.accelerator,
            memory_bytes=self.memory_bytes,
            cpus=1,
            guest=self.image.guest,
            disk_bytes=(self.disk_bytes,) if self.disk_bytes else (),
        )
        return msgspec.structs.replace(
            machine,
            bases=tuple(
                Base(
                    name=f"base{number}",
                    file=f"base{number}.erofs",
                    blocks=blocks,
                    digest=hashlib.sha256(base_content(number, blocks)).hexdigest(),
                )
                for number, blocks in enumerate(self.base_blocks)
            ),
        )

    def prepare(self, directory: Path) -> Machine:
        """Put into `directory` what a boot wants to find there."""
        machine = self.machine()
        directory.mkdir(mode=0o700)
        link_or_copy(self.image.kernel, directory / KERNEL_FILE)
        if self.image.initramfs is not None:
            link_or_copy(self.image.initramfs, directory / INITRAMFS_FILE)
        if Ability.BOOTS_ON_MEM_FILE in self.driver.abilities:
            (directory / MEM_FILE).touch(mode=0o600)
            os.truncate(directory / MEM_FILE, machine.memory_bytes)
        for disk in machine.disks:
            make_disk(directory, disk)
        for number, base in enumerate(machine.bases):
            (directory / base.file).write_bytes(base_content(number, base.blocks))
            (directory / base.file).chmod(0o444)
        return machine

    def stream(self, directory: Path, machine: Machine) -> AbstractAsyncContextManager[anyio.abc.ByteStream]:
        """Open a byte stream to the guest's agent."""
        if machine.agent_ports:
            return claim_port(directory, machine.agent_ports, wait_s=ANSWER_LIMIT_S)
        return connect_vsock(directory, wait_s=ANSWER_LIMIT_S)

    @asynccontextmanager
    async def agent(self, vm: Running) -> AsyncIterator[AgentClient]:
        """Begin a session with the guest's agent, once more if a restore's reset takes the first."""
        async with contextlib.AsyncExitStack() as stack:
            for attempt in (1, 2, 3):
                try:
                    stream = await stack.enter_async_context(self.stream(vm.directory, vm.machine))
                    client = await stack.enter_async_context(
                        AgentClient.connect(stream, timeout_s=BOOT_LIMIT_S)
                    )
                    break
                except GuestLostError:
                    await stack.aclose()
                    if attempt == 3:
                        raise
            yield client

    async def freeze(self, vm: Running) -> Frozen:
        """Pause a VM and make a mem-file and a vmstate of it, which its directory then has; end it."""
        vmm, directory = vm.vmm, vm.directory
        await vmm.pause()
        if (directory / MEM_FILE).exists():
            assert isinstance(vmm, SavesState)
            with new_file(directory / "saved-vmstate") as file:
                await vmm.save_vmstate(file)
            pid = vmm.process.pid
            mem, delta = directory / MEM_FILE, directory / "saved-delta"
            pages = LivePages(pid, changed_runs(pid, find_mapping(pid, identity_of(mem))))
            write_delta(delta, pages, memory_bytes=mem.stat().st_size)
            compact(mem, delta, mem, mode=0o600)
            delta.unlink()
        else:
            assert isinstance(vmm, SavesSnapshot)
            await vmm.save_snapshot("saved-vmstate", "saved-mem")
            punch_holes(directory / "saved-mem")
            (directory / "saved-mem").replace(directory / MEM_FILE)
        (directory / "saved-vmstate").replace(directory / VMSTATE_FILE)
        await vmm.kill()
        return Frozen(directory, vm.machine)

    def link(self, frozen: Frozen, directory: Path) -> Machine:
        """Make a directory that shares the parts of `frozen` and has its own disks."""
        directory.mkdir(mode=0o700)
        for name in (MEM_FILE, VMSTATE_FILE, KERNEL_FILE, INITRAMFS_FILE):
            if (frozen.directory / name).exists():
                os.link(frozen.directory / name, directory / name)
        for base in frozen.machine.bases:
            os.link(frozen.directory / base.file, directory / base.file)
        disks = tuple(fork_disk(frozen.directory, directory, disk).disk for disk in frozen.machine.disks)
        return msgspec.structs.replace(frozen.machine, disks=disks)

    async def write(self, agent: AgentClient, number: int) -> None:
        """Have the guest remember a number, in its memory and on its disk."""
        if self.is_linux:
            script = f"test -b /dev/vda && echo {number} > /run/mark && echo {number} > /dev/vda && sync"
            await self.run(agent, "sh", "-c", script)
        else:
            await self.run(agent, "poke", hex(_MARK_ADDRESS), hex(number))
            await self.run(agent, "bpoke", "7", hex(number))

    async def read(self, agent: AgentClient) -> tuple[int, int]:
        """Return the numbers in the guest's memory and on its disk."""
        if self.is_linux:
            output = await self.run(agent, "sh", "-c", "cat /run/mark; head -n 1 /dev/vda")
            in_memory, on_disk = output.split()
            return int(in_memory), int(on_disk)
        in_memory = await self.run(agent, "peek", hex(_MARK_ADDRESS))
        on_disk = await self.run(agent, "bpeek", "7")
        return int(in_memory.split()[0], 16), int(on_disk.split()[0], 16)

    async def write_at_the_end(self, agent: AgentClient, number: int) -> None:
        """Have the guest write its disk's last sector."""
        last = self.disk_bytes // 512 - 1
        if self.is_linux:
            await self.run(agent, "sh", "-c", f"echo {number} | dd of=/dev/vda bs=512 seek={last} conv=fsync")
        else:
            await self.run(agent, "bpoke", hex(last), hex(number))

    async def read_at_the_end(self, agent: AgentClient) -> int:
        """Return the number in its disk's last sector."""
        last = self.disk_bytes // 512 - 1
        if self.is_linux:
            script = f"dd if=/dev/vda bs=512 skip={last} 2>/dev/null | head -n 1"
            return int(await self.run(agent, "sh", "-c", script))
        return int((await self.run(agent, "bpeek", hex(last))).split()[0], 16)

    async def read_base(self, agent: AgentClient, number: int, sector: int) -> int:
        """Return the number in a sector of a read-only device (`base_content`)."""
        if self.is_linux:
            device = f"/dev/vd{chr(ord('a') + bool(self.disk_bytes) + number)}"
            words = "hexdump -n 8 -e '2/4 \"%u \"'"
            script = f"dd if={device} bs=512 skip={sector} count=1 2>/dev/null | {words}"
            low, high = (await self.run(agent, "sh", "-c", script)).split()
            return int(high) << 32 | int(low)
        return int((await self.run(agent, "bpeek", hex(sector))).split()[0], 16)

    async def write_base(self, agent: AgentClient, number: int) -> None:
        """Have the guest write to a read-only device. Raises `GuestError` when it can't, as it should be."""
        if self.is_linux:
            device = f"/dev/vd{chr(ord('a') + bool(self.disk_bytes) + number)}"
            await self.run(agent, "sh", "-c", f"echo 1 | dd of={device} bs=512 count=1 conv=notrunc,fsync")
        else:
            await self.run(agent, "bpoke", "1", "0x1")

    async def run(self, agent: AgentClient, *argv: str) -> str:
        """Return a command's standard output; `GuestError` when it fails."""
        request = ExecRequest(argv, timeout_s=ANSWER_LIMIT_S)
        outcome = await run_exec(agent, request, start_timeout_s=ANSWER_LIMIT_S)
        if outcome.exit_code != 0:
            raise GuestError(f"{argv} ended with {outcome.exit_code}: {outcome.stderr!r}")
        return outcome.stdout.decode()


def base_content(number: int, blocks: int) -> bytes:
    """Return the content of a read-only device: each of its sectors begins with its own number."""
    sectors = range(blocks * BASE_BLOCK_BYTES // 512)
    return b"".join(base_word(number, sector).to_bytes(8, "little").ljust(512, b".") for sector in sectors)


def base_word(number: int, sector: int) -> int:
    """Return the number in a sector of a read-only device."""
    return (number + 1) << 32 | sector


@dataclass(frozen=True)
class Running:
    """A VM under test."""

    directory: Path
    machine: Machine
    vmm: Vmm


@dataclass(frozen=True)
class Frozen:
    """A directory with a mem-file and a vmstate."""

    directory: Path
    machine: Machine

    def remove(self) -> None:
        """Away with it, as a user who removes a source does."""
        shutil.rmtree(self.directory)


@asynccontextmanager
async def booted(subject: Subject, directory: Path) -> AsyncIterator[Running]:
    """Boot a VM and wait until its guest has answered. It ends with the block."""
    machine = subject.prepare(directory)
    vmm = await subject.driver.boot(directory, machine)
    try:
        vm = Running(directory, machine, vmm)
        async with subject.agent(vm) as agent:
            await agent.ping(timeout_s=ANSWER_LIMIT_S)
        yield vm
    finally:
        with anyio.CancelScope(shield=True):
            await vmm.kill()


@asynccontextmanager
async def restored(
    subject: Subject, frozen: Frozen, directory: Path, *, resume: bool = True
) -> AsyncIterator[Running]:
    """Restore a VM from `frozen`, in a new directory. It ends with the block."""
    machine = subject.link(frozen, directory)
    vmm = await subject.driver.restore(directory, machine)
    try:
        await vmm.load_vmstate(VMSTATE_FILE)
        if resume:
            await vmm.resume()
        yield Running(directory, machine, vmm)
    finally:
        with anyio.CancelScope(shield=True):
            await vmm.kill()


async def introduce(agent: AgentClient, name: str) -> IdentityReply:
    """Give a guest an identity."""
    request = IdentityRequest(
        generation=2, seed=os.urandom(64), hostname=name, machine_id=os.urandom(16).hex()
    )
    return await agent.identity(request, timeout_s=ANSWER_LIMIT_S)
