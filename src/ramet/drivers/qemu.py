"""QEMU, stock and unpatched, 7.2 or newer: a Linux guest over KVM or emulated (TCG).

Sources: qemu-system(1); QEMU's QMP reference for `stop`, `cont`, `xen-save-devices-state`,
`migrate-incoming`; `docs/architecture.md` for what was measured. How a restore works:
`xen-save-devices-state` writes devices and CPUs without RAM; the ordinary incoming migration reads the same
stream, and finds RAM in place already, mapped privately from the mem-file.
"""

from __future__ import annotations

import os
import re
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Final

import anyio

from ramet.drivers import qemu_arguments, qmp
from ramet.drivers.api import Ability, Ending, Standing
from ramet.drivers.endings import announced_reboot
from ramet.drivers.limits import needs_of
from ramet.drivers.qemu_vmm import STARTED, QemuVmm, last_words
from ramet.drivers.versions import ask_version, release
from ramet.errors import RametError, UnavailableError, VmmError
from ramet.host import processes, rings
from ramet.host.files import filesystem_errors, keep_room
from ramet.model.record import Disk, Guest, Machine, ProcessRef, RamRegion
from ramet.paths import MEM_FILE, VMM_LOG, agent_socket
from ramet.programs import Program
from ramet.units import KIB, PAGE_SIZE_BYTES, round_up

AGENT_PORTS: Final = 9
"""Eight for clients with commands, and one that is kept back (`guest.ports.command_ports`)."""
_PROGRAM: Final = "qemu-system-x86_64"
_OLDEST: Final = (7, 2)
_VERSION: Final = r"version (\d+\.\d+(?:\.\d+)?)"
_INSTALL: Final = "install it (Debian, Ubuntu: `apt-get install qemu-system-x86`), or set RAMET_QEMU"
_STATES_BYTES: Final = 16 * KIB
"""How much of its log the last run states are looked for in, and have room in."""
_READ_ONLY_SINCE: Final = (8, 2)
_RUN: Final = ((7, 2),)
"""The releases that ramet's tests were run with."""


class Qemu:
    """The QEMU driver. `binary` is a path or a name on PATH; else `RAMET_QEMU`, then `qemu-system-x86_64`."""

    name = "qemu"
    # softmmu/vl.c, set_memory_options: -m is rounded up to 8 KiB, and then has to be the backend's size.
    memory_quantum_bytes = max(8 * KIB, PAGE_SIZE_BYTES)
    most_cpus = 64

    def __init__(self, binary: str | None = None) -> None:
        self._program = Program("QEMU", _PROGRAM, setting="RAMET_QEMU", given=binary, hint=_INSTALL)
        self._version: str | None = None

    @property
    def abilities(self) -> frozenset[Ability]:
        """What this QEMU can do. `version` has to have been asked before."""
        known = {
            Ability.MAPS_PRIVATELY,
            Ability.BOOTS_ON_MEM_FILE,
            Ability.LOADS_DELTA_BEFORE_VMSTATE,
            Ability.EMULATES,
        }
        if release(self._known_version()) >= _READ_ONLY_SINCE:
            known.add(Ability.OPENS_MEM_FILE_READ_ONLY)
        return frozenset(known)

    async def version(self) -> str:
        """As `Driver.version`. The program is run once for each `Qemu`."""
        if self._version is None:
            self._version = await ask_version(
                "QEMU", self._program.path(), _VERSION, oldest=_OLDEST, install=_INSTALL, setting="RAMET_QEMU"
            )
        return self._version

    def standing(self) -> Standing:
        """As `Driver.standing`."""
        version = self._known_version()
        if release(version) in _RUN:
            return Standing(True, "run")
        names = ", ".join(f"{major}.{minor}" for major, minor in _RUN)
        return Standing(False, f"untried, documented to do what ramet asks of it; {names} was run")

    def machine(
        self,
        *,
        accelerator: str,
        memory_bytes: int,
        cpus: int,
        guest: Guest = "linux",
        disk_bytes: tuple[int, ...] = (),
    ) -> Machine:
        """As `Driver.machine`. Disks are qcow2, so that a frozen one can lie under a fork's own.

        The machine type is versioned: a newer QEMU goes on making the same machine.
        """
        major, minor = release(self._known_version())
        return Machine(
            accelerator=accelerator,
            machine_type=f"pc-i440fx-{major}.{minor}",
            cpu_model=qemu_arguments.cpu_model(accelerator),
            memory_bytes=round_up(memory_bytes, self.memory_quantum_bytes),
            cpus=cpus,
            kernel_arguments=qemu_arguments.KERNEL_ARGUMENTS,
            agent_ports=AGENT_PORTS,
            disks=tuple(
                Disk(name=f"disk{n or ''}", file=f"disk{n or ''}-0.qcow2", format="qcow2", size_bytes=size)
                for n, size in enumerate(disk_bytes)
            ),
        )

    def for_cold_start(self, machine: Machine) -> Machine:
        """As `Driver.for_cold_start`: machine types are versioned, and a newer QEMU goes on making them."""
        return machine

    def arguments(self, machine: Machine) -> list[str]:
        """As `Driver.arguments`."""
        return qemu_arguments.common_arguments(
            machine,
            "MONITOR",
            [f"AGENT{number}" for number in range(machine.agent_ports)],
            mem_file_read_only=Ability.OPENS_MEM_FILE_READ_ONLY in self.abilities,
        )

    def ram_regions(self, machine: Machine) -> tuple[RamRegion, ...]:
        """As `Driver.ram_regions`."""
        return qemu_arguments.ram_regions(machine.memory_bytes)

    async def boot(self, directory: Path, machine: Machine, *, mark: Path | None = None) -> QemuVmm:
        """As `Driver.boot`."""
        return await self._spawn(directory, machine, qemu_arguments.boot_arguments(machine), mark)

    async def restore(
        self,
        directory: Path,
        machine: Machine,
        *,
        mark: Path | None = None,
        sessions: AsyncExitStack | None = None,
    ) -> QemuVmm:
        """As `Driver.restore`. QEMU would create a missing mem-file, full of zeros, hence the check."""
        if not (directory / MEM_FILE).is_file():
            raise VmmError(f"{directory / MEM_FILE} is missing")
        return await self._spawn(directory, machine, qemu_arguments.restore_arguments(), mark, sessions)

    def attach(
        self, directory: Path, process: ProcessRef, machine: Machine, *, just_loaded: bool = False
    ) -> QemuVmm:
        """As `Driver.attach`."""
        return QemuVmm(directory, process, machine)

    def ending(self, directory: Path, *, console_start: int = 0) -> Ending:
        """As `Driver.ending`.

        QEMU traces each shutdown request with its cause, except the one that a reset becomes under `-action
        reboot=shutdown`; and when it dies it doesn't get as far as the run state `shutdown`. A reset is a
        reboot when the guest said so.
        """
        log = rings.tail(directory / VMM_LOG, 64 * 1024).decode(errors="replace").rpartition(STARTED)[2]
        if "(shutdown)" not in log:
            return Ending.DIED
        requests = re.findall(r"^qemu_system_shutdown_request reason=(\d+)$", log, re.MULTILINE)
        if not requests:
            return Ending.REBOOTED if announced_reboot(directory, console_start) else Ending.CRASHED
        # ShutdownCause in QEMU's qapi/run-state.json: 6 is guest-shutdown.
        return Ending.POWERED_OFF if requests[-1] == "6" else Ending.ASKED

    def is_stopped_by_disk(self, directory: Path) -> bool:
        """As `StopsOnWriteErrors.is_stopped_by_disk`, by the last run state that QEMU has traced."""
        log = rings.tail(directory / VMM_LOG, _STATES_BYTES)
        states = re.findall(rb"^runstate_set .* new_state \d+ \(([a-z-]+)\)$", log, re.MULTILINE)
        return states[-1:] == [b"io-error"]

    async def _spawn(
        self,
        directory: Path,
        machine: Machine,
        arguments: list[str],
        mark: Path | None,
        sessions: AsyncExitStack | None = None,
    ) -> QemuVmm:
        await self.version()
        _refuse_devices(machine)
        read_only = Ability.OPENS_MEM_FILE_READ_ONLY in self.abilities
        log = directory / VMM_LOG
        with filesystem_errors("start QEMU in", directory), ExitStack() as closing:
            directory_fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            closing.callback(os.close, directory_fd)
            listening: list[int] = []
            for name in [qmp.SOCKET, *map(agent_socket, range(machine.agent_ports))]:
                listener = closing.enter_context(processes.listen(directory_fd, name))
                listening.append(listener.fileno())
            monitor_fd, *agent_fds = listening
            argv = [
                self._program.path(),
                *qemu_arguments.common_arguments(
                    machine, monitor_fd, agent_fds, mem_file_read_only=read_only
                ),
                *arguments,
                *qemu_arguments.host_arguments(machine),
            ]
            with log.open("ab") as out:
                out.write(os.fsencode(f"{STARTED}{' '.join(argv)}\n"))
                if machine.disks:
                    out.flush()
                    # A full disk is said in this log, which lies on that disk.
                    keep_room(out.fileno(), _STATES_BYTES)
            process = processes.spawn(
                argv,
                directory=directory,
                log=log,
                fds=listening,
                needs=needs_of(machine),
                mark=mark,
            )
        vmm = QemuVmm(directory, process, machine)
        try:
            # The monitor answers once every device has been made.
            if sessions is not None:
                await sessions.enter_async_context(vmm.session())
            else:
                await vmm.status()
        except RametError as error:
            with anyio.CancelScope(shield=True):
                await vmm.kill()
            raise VmmError(
                f"QEMU didn't come up: {last_words(log)}",
                hint="`ramet doctor` says what this machine lacks; RAMET_QEMU names another QEMU",
            ) from error
        except BaseException:
            with anyio.CancelScope(shield=True):
                await vmm.kill()
            raise
        return vmm

    def _known_version(self) -> str:
        assert self._version is not None, "Qemu.version() has to be awaited first"
        return self._version


def _refuse_devices(machine: Machine) -> None:
    """Raise `UnavailableError` for what this driver makes no device of: it isn't left out in silence.

    A balloon it mustn't make: it would punch holes in the mem-file that forks share (I1).
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
