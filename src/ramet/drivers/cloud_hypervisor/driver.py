"""Cloud Hypervisor, stock and unpatched, 53 or newer: Linux guests over KVM.

Its memory zone on a file that isn't shared is a private, read-only mapping of that file, at a boot and at a
restore, and a restore copies only the ranges of RAM that its state lists. ramet writes that list: none for a
fork of a mem-file, a delta's runs otherwise. So a fork needs only a hard link.

At the limit on the size of files (RLIMIT_FSIZE) the guest's serial console blocks for good, also when the
file is cut afterwards (seen with 53.0). So that limit is far away: ramet processes cut the logs long before,
when they open a home and while they are there (`ramet.engine.vmm.logs`), and the limit is met only where no
ramet process had the home open while a guest wrote 256 MiB.

Sources: Cloud Hypervisor's `docs/memory.md`, `docs/snapshot_restore.md`, `docs/vsock.md`, `docs/api.md`.
"""

from __future__ import annotations

import copy
import os
import resource
from contextlib import AsyncExitStack, ExitStack, suppress
from pathlib import Path
from typing import Final

import anyio
import msgspec

from ramet.drivers.cloud_hypervisor import config as cloud_hypervisor_config
from ramet.drivers.cloud_hypervisor import disks, ending, kvm_needs, releases
from ramet.drivers.cloud_hypervisor.files import require_mem_file
from ramet.drivers.cloud_hypervisor.log import STARTED, last_words, words_since_start
from ramet.drivers.cloud_hypervisor.vmm import CloudHypervisorVmm
from ramet.drivers.endings import announced_reboot
from ramet.drivers.http_api import SOCKET
from ramet.drivers.interface import Ability, Ending, Standing
from ramet.drivers.log_limits import largest_file_bytes, needs_of
from ramet.drivers.versions import ProgramVersion, is_same_release
from ramet.errors import RametError, UnavailableError, VmmError, VmmTimeoutError
from ramet.model.record import Disk, Guest, Machine, ProcessRef, RamRegion
from ramet.paths import (
    CONFIG_FILE,
    CONSOLE_LOG,
    EVENTS_LOG,
    INITRAMFS_FILE,
    KERNEL_FILE,
    VMM_LOG,
    VSOCK_SOCKET,
)
from ramet.programs import Program
from ramet.system import bounded_log, processes, rlimits, sockets, spawn
from ramet.system.files import filesystem_errors, new_file, write_all
from ramet.system.rlimits import Needs
from ramet.units import MIB, round_up

PROGRAM: Final = "cloud-hypervisor"
SETTING: Final = "RAMET_CLOUD_HYPERVISOR"
_VERSION: Final = r"cloud-hypervisor v(\d+\.\d+(?:\.\d+)?(?:[-+][0-9A-Za-z.+-]{1,64})?)"
_INSTALL: Final = f"put it on PATH, or set {SETTING}"
_LAST_WORDS_S: Final = 1.0
_LOG_BYTES: Final = 256 * MIB
"""The kernel's limit on each log, far above the size at which a log is cut."""
_CAPABILITIES: Final = "security.capability"
_LEAST_FILES: Final = 256
"""Open files that a VMM must be allowed. The VMM of a Linux guest with a disk has 124 (seen with 53.0)."""


class CloudHypervisor:
    """The Cloud Hypervisor driver.

    `binary` is a path or a name on PATH; else `RAMET_CLOUD_HYPERVISOR`, then `cloud-hypervisor` on PATH.
    """

    name = "cloud-hypervisor"
    setting = SETTING
    memory_quantum_bytes = MIB
    most_cpus = 32  # ramet's limit, because of `state.most_bytes`

    def __init__(self, binary: str | None = None) -> None:
        self._program = Program(
            "Cloud Hypervisor", PROGRAM, setting=self.setting, given=binary, hint=_INSTALL
        )
        self._version = ProgramVersion(
            "Cloud Hypervisor", self._program, _VERSION, oldest=releases.OLDEST, setting=self.setting
        )

    @property
    def abilities(self) -> frozenset[Ability]:
        """The abilities of this Cloud Hypervisor. A delta comes with the vmstate (`LoadsDelta`)."""
        return frozenset(
            {
                Ability.MAPS_PRIVATELY,
                Ability.OPENS_MEM_FILE_READ_ONLY,
                Ability.BOOTS_ON_MEM_FILE,
                Ability.OVERRIDES_NETWORK,
                Ability.OVERRIDES_VSOCK,
            }
        )

    async def version(self) -> str:
        """Return the VMM's version (`Driver.version`).

        Raises `UnavailableError` also for a program with file capabilities: the kernel lets nobody but root
        read the memory of its processes (execve(2), ptrace(2)), so no guest could be captured.
        """
        version = await self._version.ask()
        path = self._program.path()
        if os.geteuid() != 0 and _has_capabilities(path):
            raise UnavailableError(
                f"Cloud Hypervisor ({path}) has file capabilities, so nobody may read its guests' memory",
                hint=f"set {SETTING} to a copy of it (`cp` leaves the capabilities behind)",
            )
        return version

    def as_of(self, version: str) -> CloudHypervisor:
        """Return the driver for a VMM of that version (`Driver.as_of`)."""
        made = copy.copy(self)
        made._version = self._version.taken_for(version)  # noqa: SLF001 - of this very class
        return made

    def takes_vmstate_of(self, version: str) -> bool:
        """Tell whether it is the same major version's (`Driver.takes_vmstate_of`)."""
        return releases.is_compatible(version, self._version.known())

    def standing(self) -> Standing:
        """Return what is known of the version (`Driver.standing`), and what KVM lacks for it."""
        standing = releases.standing(self._version.known())
        lacks = kvm_needs.lacks()
        return standing._replace(advice=lacks.words, why_unusable=lacks.words if lacks.capabilities else None)

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
            machine_type=releases.machine_type(self._version.known()),
            cpu_model="host",
            memory_bytes=round_up(memory_bytes, self.memory_quantum_bytes),
            cpus=cpus,
            kernel_arguments=cloud_hypervisor_config.KERNEL_ARGUMENTS if guest == "linux" else "",
            agent_ports=0,
            disks=tuple(
                Disk(name=f"disk{n or ''}", file=f"disk{n or ''}.raw", format="raw", size_bytes=size)
                for n, size in enumerate(disk_bytes)
            ),
            entropy_device=True,  # each machine has one
        )

    def for_cold_start(self, machine: Machine) -> Machine:
        """Return the machine of this release (`Driver.for_cold_start`)."""
        name = releases.machine_type(self._version.known())
        return msgspec.structs.replace(machine, machine_type=name)

    def arguments(self, machine: Machine) -> list[str]:
        """Return the body of `vm.create` (`Driver.arguments`), as one text."""
        document = cloud_hypervisor_config.vm_config(machine, initramfs=bool(machine.kernel_arguments))
        return [msgspec.json.encode(document, order="sorted").decode()]

    def ram_regions(self, machine: Machine) -> tuple[RamRegion, ...]:
        """Return the RAM regions (`Driver.ram_regions`)."""
        return releases.ram_regions(machine.memory_bytes)

    async def boot(self, directory: Path, machine: Machine, *, tag: Path | None = None) -> CloudHypervisorVmm:
        """Start a VMM whose guest boots (`Driver.boot`)."""
        if not (directory / KERNEL_FILE).exists():
            raise VmmError(f"{directory / KERNEL_FILE} is missing")
        _require_plain(directory, machine)
        initramfs = (directory / INITRAMFS_FILE).exists()
        document = cloud_hypervisor_config.vm_config(machine, initramfs=initramfs)
        with filesystem_errors("write", directory / CONFIG_FILE):  # for people
            (directory / CONFIG_FILE).unlink(missing_ok=True)  # a link that a VMM made isn't followed
            with new_file(directory / CONFIG_FILE) as file:
                write_all(file, msgspec.json.format(msgspec.json.encode(document)) + b"\n", 0)
        vmm = await self._start(directory, machine, tag)
        try:
            await vmm.create_and_boot(initramfs=initramfs)
        except BaseException as error:
            await _end(vmm, error)
            raise
        return vmm

    async def restore(
        self,
        directory: Path,
        machine: Machine,
        *,
        tag: Path | None = None,
        sessions: AsyncExitStack | None = None,
    ) -> CloudHypervisorVmm:
        """Start a VMM that waits for a load (`Driver.restore`)."""
        return await self._start(directory, machine, tag, sessions)

    async def start_empty(self, directory: Path, *, tag: Path | None = None) -> ProcessRef:
        """Start a VMM without a machine (`StartsEmpty.start_empty`): it takes the machine over its API."""
        version = await self.version()
        process = self._begin(directory, tag, Needs(file_bytes=_LOG_BYTES))
        nominal = self.machine(accelerator="kvm", memory_bytes=MIB, cpus=1)
        await self._come_up(CloudHypervisorVmm(directory, process, nominal, None), version)
        return process

    async def attach_guest(
        self, directory: Path, process: ProcessRef, machine: Machine, sessions: AsyncExitStack
    ) -> CloudHypervisorVmm:
        """Give an empty VMM its guest (`StartsEmpty.attach_guest`). The load itself tells it everything."""
        _refuse_devices(machine)
        if (largest_bytes := largest_file_bytes(machine, log_bytes=_LOG_BYTES)) != _LOG_BYTES:
            rlimits.limit_files(process, largest_bytes)
        vmm = CloudHypervisorVmm(directory, process, machine, await self.version())
        try:
            require_mem_file(directory, machine)
            await sessions.enter_async_context(vmm.session())
        except BaseException as error:
            await _end(vmm, error)
            raise
        return vmm

    def attach(
        self, directory: Path, process: ProcessRef, machine: Machine, *, just_loaded: bool = False
    ) -> CloudHypervisorVmm:
        """Return the handle of a VMM that was started earlier (`Driver.attach`)."""
        return CloudHypervisorVmm(directory, process, machine, None)

    def ending(self, directory: Path, *, console_start: int = 0) -> Ending:
        """Tell how the VMM ended (`Driver.ending`), by its events and its log."""
        return ending.ending_of(
            bounded_log.tail(directory / EVENTS_LOG, ending.LOOKED_AT_BYTES),
            words_since_start(directory, ending.LOOKED_AT_BYTES),
            reboot_announced=announced_reboot(directory, console_start),
        )

    async def _start(
        self,
        directory: Path,
        machine: Machine,
        tag: Path | None,
        sessions: AsyncExitStack | None = None,
    ) -> CloudHypervisorVmm:
        """Start a VMM that has no machine yet, and wait until it answers."""
        version = await self.version()
        _refuse_devices(machine)
        require_mem_file(directory, machine)
        process = self._begin(directory, tag, needs_of(machine, log_bytes=_LOG_BYTES))
        vmm = CloudHypervisorVmm(directory, process, machine, version)
        await self._come_up(vmm, version, sessions)
        return vmm

    def _begin(self, directory: Path, tag: Path | None, needs: Needs) -> ProcessRef:
        _require_files()
        with filesystem_errors("start Cloud Hypervisor in", directory), ExitStack() as closing:
            for left in (VSOCK_SOCKET, cloud_hypervisor_config.KERNEL_ONCE):
                (directory / left).unlink(missing_ok=True)  # Cloud Hypervisor wouldn't bind over a socket
            for old in (directory / EVENTS_LOG, bounded_log.previous(directory / EVENTS_LOG)):
                old.unlink(missing_ok=True)
            # Its log is its standard error, which appends. A separate file (`--log-file`) wouldn't be
            # appended to: once it was cut, it would grow to the limit, and take no last words.
            with (directory / VMM_LOG).open("ab") as log:
                log.write(STARTED)
            directory_fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            closing.callback(os.close, directory_fd)
            listener = closing.enter_context(sockets.listen(directory_fd, SOCKET))
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
            events_fd = os.open(EVENTS_LOG, flags, 0o600, dir_fd=directory_fd)
            closing.callback(os.close, events_fd)
            return spawn.spawn(
                [
                    self._program.path(),
                    *("--api-socket", f"fd={listener.fileno()}"),
                    *("--event-monitor", f"fd={events_fd}"),
                    "-v",
                ],
                directory=directory,
                log=directory / CONSOLE_LOG,
                errors=directory / VMM_LOG,
                fds=[listener.fileno(), events_fd],
                needs=needs,
                tag=tag,
            )

    async def _come_up(
        self, vmm: CloudHypervisorVmm, version: str, sessions: AsyncExitStack | None = None
    ) -> None:
        """Wait until the VMM answers. Kill a VMM that doesn't.

        If `sessions` is given, it keeps the session. The VMM's socket is there before the VMM
        is, so the first request waits, and fails when the VMM ends.
        """
        try:
            if sessions is not None:
                await sessions.enter_async_context(vmm.session())
            present = await vmm.own_version()
            if present and not is_same_release(present, version):
                self._version.doubt()
                raise UnavailableError(
                    f"Cloud Hypervisor ({self._program.path()}) is {present}, and has just said that it is"
                    f" {version}",
                    hint=f"if it has been upgraded, try again; else {SETTING} names another one",
                )
        except BaseException as error:
            await _end(vmm, error)
            raise


async def _end(vmm: CloudHypervisorVmm, error: BaseException) -> None:
    """Kill a VMM that didn't come up, and raise `VmmError` with its last words if it said why."""
    with anyio.CancelScope(shield=True):
        if isinstance(error, VmmError) and not isinstance(error, VmmTimeoutError):
            # The VMM closes its socket before it writes the reason.
            await processes.wait_ended(vmm.process, timeout_s=_LAST_WORDS_S)
        await vmm.kill()
    if isinstance(error, RametError) and not isinstance(error, UnavailableError):
        words = last_words(vmm.directory)
        raise VmmError(
            f"Cloud Hypervisor didn't start: {error.message}{f': {words}' if words else ''}",
            hint=f"`ramet doctor` says what this machine lacks; {SETTING} names another one",
        ) from error


def _refuse_devices(machine: Machine) -> None:
    """Raise `UnavailableError` for a device that this driver doesn't make, and would leave out silently.

    The driver must not make a balloon, which would punch holes in the mem-file that forks share (I1).
    """
    wanted = {
        "a balloon": machine.balloon_bytes is not None,
        "a list of changed pages": machine.track_changes,
        "metrics": machine.metrics,
        "emulation": machine.accelerator != "kvm",
        "a disk that isn't raw": any(disk.format != "raw" for disk in machine.disks),
    }
    refused = [what for what, is_wanted in wanted.items() if is_wanted]
    if refused:
        raise UnavailableError(
            f"the cloud-hypervisor driver gives no guest {' or '.join(refused)}",
            hint="leave that out, or choose another driver",
        )


def _require_files() -> None:
    """Raise `UnavailableError` where a VMM couldn't open all of its files; it might fail at any request."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _LEAST_FILES:
        raise UnavailableError(
            f"a process may open {hard} files at most (RLIMIT_NOFILE), and Cloud Hypervisor needs up to"
            f" {_LEAST_FILES}",
            hint="raise it: `nofile` in /etc/security/limits.conf, LimitNOFILE= in a systemd unit",
        )


def _require_plain(directory: Path, machine: Machine) -> None:
    """Raise `VmmError` for a disk of another size, or one that Cloud Hypervisor takes for another format.

    A guest that boots can't be kept from its disk while the magic is taken out, as a restored one is.
    """
    disks.require_disks(directory, machine.disks)
    for disk in machine.disks:
        claimed = disks.foreign_format(directory / disk.file)
        if claimed is not None:
            raise VmmError(
                f"{directory / disk.file} is a raw disk and looks like a {claimed} file, on which Cloud"
                " Hypervisor boots no guest",
                hint="a guest wrote that; a snapshot of an earlier moment can be restored",
            )


def _has_capabilities(path: str) -> bool:
    with suppress(OSError):  # no such attribute, or a filesystem without any
        return bool(os.getxattr(path, _CAPABILITIES))
    return False
