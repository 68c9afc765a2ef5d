"""QEMU, stock and unpatched, 7.2 or newer: a Linux guest over KVM or emulated (TCG).

Sources: qemu-system(1); QEMU's QMP reference for `stop`, `cont`, `xen-save-devices-state`,
`migrate-incoming`; measurements in `docs/internals/architecture.md`. A restore works as follows:
`xen-save-devices-state` writes devices and CPUs without RAM; the ordinary incoming migration reads the same
stream, and finds RAM in place already, mapped privately from the mem-file.
"""

from __future__ import annotations

import copy
import os
import re
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Final

import anyio
import msgspec

from ramet.drivers.endings import announced_reboot
from ramet.drivers.interface import Ability, Ending, Standing
from ramet.drivers.log_limits import needs_of
from ramet.drivers.qemu import arguments as qemu_arguments
from ramet.drivers.qemu import monitor, releases
from ramet.drivers.qemu.vmm import STARTED, QemuVmm, last_words
from ramet.drivers.versions import ProgramVersion, is_same_release, release
from ramet.errors import RametError, UnavailableError, VmmError
from ramet.model.record import Disk, Guest, Machine, ProcessRef, RamRegion
from ramet.paths import MEM_FILE, VMM_LOG, agent_socket
from ramet.programs import Program
from ramet.system import bounded_log, sockets, spawn
from ramet.system.files import filesystem_errors, keep_room
from ramet.units import KIB, PAGE_SIZE_BYTES, round_up

AGENT_PORTS: Final = 9
"""Eight for clients with commands, and a reserved port (`guest.ports.command_ports`)."""
_PROGRAM: Final = "qemu-system-x86_64"
_VERSION: Final = r"version (\d+\.\d+(?:\.\d+)?)"
_INSTALL: Final = "install it (Debian, Ubuntu: `apt-get install qemu-system-x86`), or set RAMET_QEMU"
_STATES_BYTES: Final = 16 * KIB
"""Bytes at the log's end in which the last run states are looked for, and have room."""


class Qemu:
    """The QEMU driver. `binary` is a path or a name on PATH; else `RAMET_QEMU`, then `qemu-system-x86_64`."""

    name = "qemu"
    setting = "RAMET_QEMU"
    # softmmu/vl.c, set_memory_options: -m is rounded up to 8 KiB, and then has to be the backend's size.
    memory_quantum_bytes = max(8 * KIB, PAGE_SIZE_BYTES)
    most_cpus = 64

    def __init__(self, binary: str | None = None) -> None:
        self._program = Program("QEMU", _PROGRAM, setting=self.setting, given=binary, hint=_INSTALL)
        self._version = ProgramVersion(
            "QEMU", self._program, _VERSION, oldest=releases.OLDEST, setting=self.setting
        )

    @property
    def abilities(self) -> frozenset[Ability]:
        """The abilities of this QEMU. Await `version` before."""
        known = {
            Ability.MAPS_PRIVATELY,
            Ability.BOOTS_ON_MEM_FILE,
            Ability.LOADS_DELTA_BEFORE_VMSTATE,
            Ability.EMULATES,
            Ability.GIVES_GENERATION_ID,
        }
        if self._release() >= releases.READ_ONLY_SINCE:
            known.add(Ability.OPENS_MEM_FILE_READ_ONLY)
        return frozenset(known)

    async def version(self) -> str:
        """Return the VMM's version (`Driver.version`)."""
        return await self._version.ask()

    def as_of(self, version: str) -> Qemu:
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
        """Describe the machine (`Driver.machine`).

        Disks are qcow2, so that a frozen disk can lie under a fork's own.
        """
        return Machine(
            accelerator=accelerator,
            machine_type=releases.machine_type(self._release()),
            cpu_model=qemu_arguments.cpu_model(accelerator),
            memory_bytes=round_up(memory_bytes, self.memory_quantum_bytes),
            cpus=cpus,
            kernel_arguments=qemu_arguments.for_release(
                qemu_arguments.KERNEL_ARGUMENTS, accelerator, self._release()
            ),
            agent_ports=AGENT_PORTS,
            disks=tuple(
                Disk(name=f"disk{n or ''}", file=f"disk{n or ''}-0.qcow2", format="qcow2", size_bytes=size)
                for n, size in enumerate(disk_bytes)
            ),
        )

    def for_cold_start(self, machine: Machine) -> Machine:
        """Return the release's own machine (`Driver.for_cold_start`).

        A release can't make the machines of later releases, and those of earlier releases not for ever.
        """
        numbers = self._release()
        return msgspec.structs.replace(
            machine,
            machine_type=releases.machine_type(numbers),
            kernel_arguments=qemu_arguments.for_release(
                machine.kernel_arguments, machine.accelerator, numbers
            ),
        )

    def arguments(self, machine: Machine) -> list[str]:
        """Return the machine's arguments (`Driver.arguments`)."""
        return qemu_arguments.common_arguments(
            machine,
            "MONITOR",
            [f"AGENT{number}" for number in range(machine.agent_ports)],
            numbers=self._release(),
        )

    def ram_regions(self, machine: Machine) -> tuple[RamRegion, ...]:
        """Return the RAM regions (`Driver.ram_regions`)."""
        return qemu_arguments.ram_regions(machine.memory_bytes)

    async def boot(self, directory: Path, machine: Machine, *, tag: Path | None = None) -> QemuVmm:
        """Start a VMM whose guest boots (`Driver.boot`)."""
        return await self._spawn(directory, machine, qemu_arguments.boot_arguments(machine), tag)

    async def restore(
        self,
        directory: Path,
        machine: Machine,
        *,
        tag: Path | None = None,
        sessions: AsyncExitStack | None = None,
    ) -> QemuVmm:
        """Start a VMM that waits for a load (`Driver.restore`).

        QEMU would create a missing mem-file, full of zeros, hence the check.
        """
        if not (directory / MEM_FILE).is_file():
            raise VmmError(f"{directory / MEM_FILE} is missing")
        return await self._spawn(directory, machine, qemu_arguments.restore_arguments(), tag, sessions)

    def attach(
        self, directory: Path, process: ProcessRef, machine: Machine, *, just_loaded: bool = False
    ) -> QemuVmm:
        """Return the handle of a VMM that was started earlier (`Driver.attach`)."""
        return QemuVmm(directory, process, machine)

    def ending(self, directory: Path, *, console_start: int = 0) -> Ending:
        """Tell how the VMM ended (`Driver.ending`).

        QEMU traces each shutdown request with its cause, except the request that a reset becomes under
        `-action reboot=shutdown`; and when it dies it doesn't reach the run state `shutdown`. A reset is a
        reboot when the guest said so.
        """
        log = bounded_log.tail(directory / VMM_LOG, 64 * 1024).decode(errors="replace").rpartition(STARTED)[2]
        if "(shutdown)" not in log:
            return Ending.DIED
        requests = re.findall(r"^qemu_system_shutdown_request reason=(\d+)$", log, re.MULTILINE)
        if not requests:
            return Ending.REBOOTED if announced_reboot(directory, console_start) else Ending.CRASHED
        # ShutdownCause in QEMU's qapi/run-state.json: 6 is guest-shutdown.
        return Ending.POWERED_OFF if requests[-1] == "6" else Ending.ASKED

    def is_stopped_by_disk(self, directory: Path) -> bool:
        """Tell whether QEMU has paused its guest for a write error, by the last traced run state.

        See `StopsOnWriteErrors.is_stopped_by_disk`.
        """
        log = bounded_log.tail(directory / VMM_LOG, _STATES_BYTES)
        states = re.findall(rb"^runstate_set .* new_state \d+ \(([a-z-]+)\)$", log, re.MULTILINE)
        return states[-1:] == [b"io-error"]

    async def _spawn(
        self,
        directory: Path,
        machine: Machine,
        arguments: list[str],
        tag: Path | None,
        sessions: AsyncExitStack | None = None,
    ) -> QemuVmm:
        asked = await self.version()
        _refuse_devices(machine)
        log = directory / VMM_LOG
        with filesystem_errors("start QEMU in", directory), ExitStack() as closing:
            directory_fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            closing.callback(os.close, directory_fd)
            listening: list[int] = []
            for name in [monitor.SOCKET, *map(agent_socket, range(machine.agent_ports))]:
                listener = closing.enter_context(sockets.listen(directory_fd, name))
                listening.append(listener.fileno())
            monitor_fd, *agent_fds = listening
            argv = [
                self._program.path(),
                *qemu_arguments.common_arguments(machine, monitor_fd, agent_fds, numbers=release(asked)),
                *arguments,
                *qemu_arguments.host_arguments(machine),
            ]
            with log.open("ab") as out:
                out.write(os.fsencode(f"{STARTED}{' '.join(argv)}\n"))
                if machine.disks:
                    out.flush()
                    # A full disk is said in this log, which lies on that disk.
                    keep_room(out.fileno(), _STATES_BYTES)
            process = spawn.spawn(
                argv,
                directory=directory,
                log=log,
                fds=listening,
                needs=needs_of(machine),
                tag=tag,
            )
        vmm = QemuVmm(directory, process, machine)
        try:
            if sessions is not None:
                await sessions.enter_async_context(vmm.session())
            problems = await vmm.come_up()
        except RametError as error:
            with anyio.CancelScope(shield=True):
                await vmm.kill()
            self._version.doubt()
            self._require_still(asked, await self.version())
            raise VmmError(
                f"QEMU didn't start: {last_words(log)}",
                hint="`ramet doctor` says what this machine lacks; RAMET_QEMU names another QEMU",
            ) from error
        except BaseException:
            with anyio.CancelScope(shield=True):
                await vmm.kill()
            raise
        try:
            self._require_still(asked, problems or asked)
        except UnavailableError:
            self._version.doubt()
            with anyio.CancelScope(shield=True):
                await vmm.kill()
            raise
        return vmm

    def _require_still(self, asked: str, status: str) -> None:
        """Raise `UnavailableError` unless the VMM is of the release for which its machine was made.

        A script may start another program than before, and its file is the same.
        """
        if not is_same_release(status, asked):
            raise UnavailableError(
                f"QEMU ({self._program.path()}) is {status}, and has just said that it is {asked}",
                hint=f"if it has been upgraded, try again; else {self.setting} names another one",
            )

    def _release(self) -> tuple[int, int]:
        return release(self._version.known())


def _refuse_devices(machine: Machine) -> None:
    """Raise `UnavailableError` for devices that this driver doesn't make: they aren't left out silently.

    It must not make a balloon, which would punch holes in the mem-file that forks share (I1).
    """
    wanted = {
        "a network interface": bool(machine.nics),
        "a balloon": machine.balloon_bytes is not None,
        "an entropy device": machine.entropy_device,
        "a list of changed pages": machine.track_changes,
        "metrics": machine.metrics,
    }
    refused = [what for what, is_wanted in wanted.items() if is_wanted]
    if refused:
        raise UnavailableError(f"the qemu driver gives no guest {' or '.join(refused)}")
