"""Firecracker, stock and unpatched, 1.8 or newer: Linux and bare-metal guests over KVM.

A restored Firecracker maps the mem-file privately and read-only by itself, so a fork needs only a hard link.
It works in its instance's directory, and every path that it is given is relative.

Sources: Firecracker's `swagger/firecracker.yaml`, `docs/snapshotting/snapshot-support.md`, `docs/vsock.md`;
measurements in `docs/internals/architecture.md`.
"""

from __future__ import annotations

import copy
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import anyio
import msgspec

from ramet import config
from ramet.drivers.endings import announced_power_off, announced_reboot
from ramet.drivers.firecracker import config as firecracker_config
from ramet.drivers.firecracker import releases
from ramet.drivers.firecracker.vmm import FirecrackerVmm, last_words, lost_its_reason
from ramet.drivers.http_api import SOCKET
from ramet.drivers.interface import Ability, Ending, Standing
from ramet.drivers.log_limits import LARGEST_LOG_BYTES, largest_file_bytes, needs_of
from ramet.drivers.versions import ProgramVersion, is_same_release, release
from ramet.errors import RametError, UnavailableError, VmmError, VmmTimeoutError
from ramet.model.record import Disk, Guest, Machine, ProcessRef, RamRegion
from ramet.paths import (
    CONFIG_FILE,
    CONSOLE_LOG,
    INITRAMFS_FILE,
    KERNEL_FILE,
    MEM_FILE,
    METRICS_FILE,
    VMM_LOG,
    VSOCK_SOCKET,
)
from ramet.programs import Program
from ramet.system import bounded_log, processes, rlimits, spawn
from ramet.system.files import filesystem_errors
from ramet.system.rlimits import Needs
from ramet.units import MIB, round_up

PROGRAM: Final = "firecracker"
# Each new thread of a glibc Firecracker would have its own heap, perhaps next to guest RAM, and shown by
# the kernel as one area with it. With musl it has no effect.
_ENVIRONMENT: Final = {"MALLOC_ARENA_MAX": "1"}
_LAST_WORDS_S: Final = 1.0
# Its log's first line and its last, unless it died.
_STARTED: Final = b"Running Firecracker v"
_EXITED: Final = b"Firecracker exiting successfully"
_VERSION: Final = r"Firecracker v(\d+\.\d+\.\d+(?:[-+][0-9A-Za-z.+-]{1,64})?)"
_INSTALL: Final = "put it on PATH or into {tools}, or set RAMET_FIRECRACKER"


class Firecracker:
    """The Firecracker driver.

    `binary` is a path or a name on PATH; else `RAMET_FIRECRACKER`, then `firecracker` on PATH, then in
    ramet's own tool directory (`<cache>/tools`).
    """

    name = "firecracker"
    setting = "RAMET_FIRECRACKER"
    memory_quantum_bytes = MIB  # src/firecracker/swagger/firecracker.yaml: `mem_size_mib`
    most_cpus = 32  # there, MachineConfiguration: `vcpu_count`

    def __init__(self, binary: str | None = None) -> None:
        self._program = _program(binary)
        self._version = ProgramVersion(
            "Firecracker", self._program, _VERSION, oldest=releases.OLDEST, setting=self.setting
        )

    @property
    def abilities(self) -> frozenset[Ability]:
        """The abilities of this Firecracker. Await `version` before."""
        known = {
            Ability.MAPS_PRIVATELY,
            Ability.OPENS_MEM_FILE_READ_ONLY,
            Ability.BOOTS_BARE_METAL,
            Ability.GIVES_GENERATION_ID,
        }
        numbers = release(self._version.known())
        if numbers >= releases.NETWORK_OVERRIDES_SINCE:
            known.add(Ability.OVERRIDES_NETWORK)
        if numbers >= releases.VSOCK_OVERRIDE_SINCE:
            known.add(Ability.OVERRIDES_VSOCK)
        return frozenset(known)

    async def version(self) -> str:
        """Return the VMM's version (`Driver.version`)."""
        return await self._version.ask()

    def as_of(self, version: str) -> Firecracker:
        """Return the driver for a VMM of that version (`Driver.as_of`)."""
        made = copy.copy(self)
        made._version = self._version.taken_for(version)  # noqa: SLF001 - of this very class
        return made

    def takes_vmstate_of(self, version: str) -> bool:
        """Tell whether it is the same release's (`Driver.takes_vmstate_of`)."""
        return is_same_release(version, self._version.known())

    def standing(self) -> Standing:
        """Return what is known of the version (`Driver.standing`)."""
        return releases.standing(self._version.known())

    def machine(
        self,
        *,
        accelerator: str,
        memory_bytes: int,
        cpus: int,
        guest: Guest = "linux",
        disk_bytes: tuple[int, ...] = (),
    ) -> Machine:
        """Describe the machine (`Driver.machine`). RAM is rounded up to whole MiB. Disks are raw files."""
        return Machine(
            accelerator=accelerator,
            machine_type=releases.machine_type(release(self._version.known())),
            cpu_model="host",
            memory_bytes=round_up(memory_bytes, self.memory_quantum_bytes),
            cpus=cpus,
            kernel_arguments=firecracker_config.KERNEL_ARGUMENTS if guest == "linux" else "",
            agent_ports=0,
            disks=tuple(
                Disk(name=f"disk{n or ''}", file=f"disk{n or ''}.raw", format="raw", size_bytes=size)
                for n, size in enumerate(disk_bytes)
            ),
            entropy_device=guest == "linux",
        )

    def for_cold_start(self, machine: Machine) -> Machine:
        """Return the machine of this release (`Driver.for_cold_start`): each release makes its own."""
        name = releases.machine_type(release(self._version.known()))
        return msgspec.structs.replace(machine, machine_type=name)

    def arguments(self, machine: Machine) -> list[str]:
        """Return the document that the machine boots from (`Driver.arguments`), as one text."""
        document = firecracker_config.boot_config(machine, initramfs=bool(machine.kernel_arguments))
        return [msgspec.json.encode(document, order="sorted").decode()]

    def ram_regions(self, machine: Machine) -> tuple[RamRegion, ...]:
        """Return the RAM regions (`Driver.ram_regions`) of the release that makes the machine.

        Another release may be installed.
        """
        numbers = releases.release_of(machine.machine_type) or release(self._version.known())
        return releases.ram_regions(machine.memory_bytes, numbers)

    async def boot(self, directory: Path, machine: Machine, *, tag: Path | None = None) -> FirecrackerVmm:
        """Start a VMM whose guest boots (`Driver.boot`). The whole machine is in one file, `config.json`."""
        self._refuse_too_much(machine, release(await self.version()))
        initramfs = (directory / INITRAMFS_FILE).exists()
        document = firecracker_config.boot_config(machine, initramfs=initramfs)
        with filesystem_errors("write", directory / CONFIG_FILE):
            (directory / CONFIG_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(document)) + b"\n")
        if not (directory / KERNEL_FILE).exists():
            raise VmmError(f"{directory / KERNEL_FILE} is missing")
        for is_last in (False, False, True):
            try:
                return await self._spawn(directory, machine, ["--config-file", CONFIG_FILE], tag)
            except VmmError:
                if is_last or not lost_its_reason(directory):
                    raise
        raise AssertionError("the last try returns or raises")

    @staticmethod
    def _refuse_too_much(machine: Machine, numbers: tuple[int, int]) -> None:
        """Raise `UnavailableError` for more devices, or longer kernel arguments, than a machine can have."""
        devices = firecracker_config.count_devices(machine)
        if devices > (most := releases.most_devices(numbers)):
            raise UnavailableError(
                f"Firecracker {numbers[0]}.{numbers[1]} gives a guest {most} devices at most, and this one"
                f" would have {devices}: {len(machine.disks)} disks, {len(machine.bases)} parts of its image,"
                f" {devices - len(machine.disks) - len(machine.bases)} others",
                hint="give it fewer disks, or another driver, such as qemu",
            )
        if len(machine.kernel_arguments) > (most := releases.most_argument_bytes(devices)):
            raise UnavailableError(
                f"the kernel arguments of this guest have {len(machine.kernel_arguments)} bytes, and with"
                f" {devices} devices Firecracker takes {most}",
                hint="mount fewer disks, or at shorter paths, or use another driver, such as qemu",
            )

    async def restore(
        self,
        directory: Path,
        machine: Machine,
        *,
        tag: Path | None = None,
        sessions: AsyncExitStack | None = None,
    ) -> FirecrackerVmm:
        """Start a VMM that waits for a load (`Driver.restore`)."""
        if not (directory / MEM_FILE).is_file():
            raise VmmError(f"{directory / MEM_FILE} is missing")
        return await self._spawn(directory, machine, [], tag, sessions)

    async def start_empty(self, directory: Path, *, tag: Path | None = None) -> ProcessRef:
        """Start a VMM without a machine (`StartsEmpty.start_empty`).

        Firecracker takes the machine over its API.
        """
        await self.version()
        process = self._begin(directory, [], tag, Needs(file_bytes=LARGEST_LOG_BYTES))
        nominal = self.machine(accelerator="kvm", memory_bytes=MIB, cpus=1)
        await self._come_up(FirecrackerVmm(directory, process, nominal), boots=False)
        return process

    async def attach_guest(
        self, directory: Path, process: ProcessRef, machine: Machine, sessions: AsyncExitStack
    ) -> FirecrackerVmm:
        """Give an empty VMM its guest (`StartsEmpty.attach_guest`)."""
        if machine.metrics:
            raise UnavailableError("Firecracker takes the path of its metrics only at its start")
        if (largest_bytes := largest_file_bytes(machine)) != LARGEST_LOG_BYTES:
            rlimits.limit_files(process, largest_bytes)
        vmm = FirecrackerVmm(directory, process, machine, self.abilities)
        await self._come_up(vmm, boots=False, sessions=sessions)
        return vmm

    def attach(
        self, directory: Path, process: ProcessRef, machine: Machine, *, just_loaded: bool = False
    ) -> FirecrackerVmm:
        """Return the handle of a VMM that was started earlier (`Driver.attach`)."""
        return FirecrackerVmm(directory, process, machine, just_loaded=just_loaded)

    def ending(self, directory: Path, *, console_start: int = 0) -> Ending:
        """Tell how the VMM ended (`Driver.ending`).

        Firecracker ends when its guest resets, and has no power switch: a guest's agent that powers off says
        so on the console and then resets. The guest decides which of the two it was, and it matters to that
        guest alone.
        """
        log = directory / VMM_LOG
        # The end of what an earlier start wrote may stand before it.
        exited = _EXITED in bounded_log.tail(log, 4096).rpartition(_STARTED)[2]
        size_bytes = log.stat().st_size if log.exists() else 0
        # A log that is at its limit, which `bounded_log.trim` may have emptied since, took no last line.
        is_full = size_bytes == 0 or size_bytes >= LARGEST_LOG_BYTES
        if not exited and not is_full:
            return Ending.DIED
        if announced_power_off(directory, console_start):
            return Ending.POWERED_OFF
        if not exited:
            return Ending.DIED
        return Ending.REBOOTED if announced_reboot(directory, console_start) else Ending.CRASHED

    async def _spawn(
        self,
        directory: Path,
        machine: Machine,
        arguments: list[str],
        tag: Path | None,
        sessions: AsyncExitStack | None = None,
    ) -> FirecrackerVmm:
        await self.version()
        if machine.metrics:
            with filesystem_errors("start Firecracker in", directory):
                (directory / METRICS_FILE).unlink(missing_ok=True)
                (directory / METRICS_FILE).touch(mode=0o600)
            arguments = [*arguments, "--metrics-path", METRICS_FILE]
        process = self._begin(directory, arguments, tag, needs_of(machine))
        vmm = FirecrackerVmm(directory, process, machine, self.abilities)
        await self._come_up(vmm, boots="--config-file" in arguments, sessions=sessions)
        return vmm

    def _begin(self, directory: Path, arguments: list[str], tag: Path | None, needs: Needs) -> ProcessRef:
        log = directory / VMM_LOG
        with filesystem_errors("start Firecracker in", directory):
            for left in (SOCKET, VSOCK_SOCKET):
                (directory / left).unlink(missing_ok=True)  # it wouldn't bind over sockets
            # It writes from the beginning of the file that it finds, so each start has a new file.
            if log.exists():
                log.replace(bounded_log.previous(log))
            log.touch(mode=0o600)
            return spawn.spawn(
                [
                    self.program(),
                    *("--id", (tag or directory).name, "--api-sock", SOCKET),
                    *("--log-path", VMM_LOG, "--level", "Info"),
                    *arguments,
                ],
                directory=directory,
                log=directory / CONSOLE_LOG,
                needs=needs,
                tag=tag,
                environment=_ENVIRONMENT,
            )

    async def _come_up(
        self, vmm: FirecrackerVmm, *, boots: bool, sessions: AsyncExitStack | None = None
    ) -> None:
        """Wait until it is there, if need be in a session that `sessions` keeps. It is killed if it isn't."""
        try:
            if sessions is not None:
                await sessions.enter_async_context(vmm.session())
            await vmm.come_up(boots=boots)
        except RametError as error:
            with anyio.CancelScope(shield=True):
                if not isinstance(error, VmmTimeoutError):
                    # Its API goes first, then it says why.
                    await processes.wait_ended(vmm.process, timeout_s=_LAST_WORDS_S)
                await vmm.kill()
            raise VmmError(
                f"Firecracker didn't start: {last_words(vmm.directory) or error.message}",
                hint="`ramet doctor` says what this machine lacks; RAMET_FIRECRACKER names another one",
            ) from error
        except BaseException:
            with anyio.CancelScope(shield=True):
                await vmm.kill()
            raise

    def program(self) -> str:
        """Return the program's path. Raises `UnavailableError` when there is none."""
        return self._program.path()


def _program(binary: str | None) -> Program:
    try:
        tools = [config.tools_directory()]
    except UnavailableError:
        tools = []  # there is no cache here: code that needs it says so
    return Program(
        "Firecracker",
        PROGRAM,
        setting="RAMET_FIRECRACKER",
        given=binary,
        beside=tools,
        hint=_INSTALL.format(tools=tools[0] if tools else "<cache>/tools"),
    )
