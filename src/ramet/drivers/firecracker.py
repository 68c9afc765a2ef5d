"""Firecracker, stock and unpatched, 1.8 or newer: Linux and bare-metal guests over KVM.

A restored Firecracker maps the mem-file privately and read-only by itself, so a fork is a hard link away. It
works in its instance's directory, and every path that it is given is relative.

Sources: Firecracker's `swagger/firecracker.yaml`, `docs/snapshotting/snapshot-support.md`, `docs/vsock.md`;
`docs/architecture.md` for what was measured.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any, Final, Literal

import anyio
import msgspec

from ramet import config
from ramet.drivers import firecracker_config
from ramet.drivers.api import VERSION_LIMIT_S, Ability, Ending
from ramet.drivers.firecracker_api import SOCKET, api
from ramet.drivers.firecracker_config import VSOCK_SOCKET
from ramet.drivers.limits import LARGEST_LOG_BYTES, largest_file_bytes
from ramet.errors import RametError, UnavailableError, VmmError, VmmTimeoutError
from ramet.host import processes, rings
from ramet.host.files import filesystem_errors
from ramet.host.listening import connect_when_listening
from ramet.model.record import Disk, Guest, Machine, ProcessRef
from ramet.paths import (
    CONFIG_FILE,
    CONSOLE_LOG,
    INITRAMFS_FILE,
    KERNEL_FILE,
    MEM_FILE,
    METRICS_FILE,
    VMM_LOG,
)
from ramet.units import KIB, MIB

PROGRAM: Final = "firecracker"
_OLDEST: Final = (1, 8)  # the first with VMGenID, and with devices described by ACPI
_NETWORK_OVERRIDES_SINCE: Final = (1, 12)
_VSOCK_OVERRIDE_SINCE: Final = (1, 16)
_START_LIMIT_S: Final = 20.0
_LAST_WORDS_S: Final = 1.0
# A slow disk's pace, for how long saving all of RAM may take.
_SLOWEST_MIB_PER_S: Final = 10
_LONGEST_METRICS_BYTES: Final = 256 * KIB
_POWER_OFF: Final = b"ramet: power off"
# Its log's first line and its last, unless it died.
_STARTED: Final = b"Running Firecracker v"
_EXITED: Final = b"Firecracker exiting successfully"
_INSTALL: Final = "put it on PATH or into {tools}, or set RAMET_FIRECRACKER"


class Firecracker:
    """The Firecracker driver. `binary` is a path or a name on PATH; else `RAMET_FIRECRACKER`, then
    `firecracker` on PATH, then in ramet's own tool directory (`<cache>/tools`).
    """

    name = "firecracker"

    def __init__(self, binary: str | None = None) -> None:
        self._binary = binary or config.firecracker_binary()
        self._version: str | None = None

    @property
    def abilities(self) -> frozenset[Ability]:
        """What this Firecracker can do. `version` has to have been asked before."""
        known = {
            Ability.MAPS_PRIVATELY,
            Ability.OPENS_MEM_FILE_READ_ONLY,
            Ability.SAVES_STATE_WITH_RAM,
            Ability.BOOTS_BARE_METAL,
        }
        numbers = _numbers(self._known_version())
        if numbers >= _NETWORK_OVERRIDES_SINCE:
            known.add(Ability.OVERRIDES_NETWORK)
        if numbers >= _VSOCK_OVERRIDE_SINCE:
            known.add(Ability.OVERRIDES_VSOCK)
        return frozenset(known)

    async def version(self) -> str:
        """As `Driver.version`. The program is run once for each `Firecracker`."""
        if self._version is None:
            binary = self.program()
            try:
                with anyio.fail_after(VERSION_LIMIT_S):
                    result = await anyio.run_process([binary, "--version"], check=True)
            except TimeoutError as error:
                raise UnavailableError(
                    f"Firecracker ({binary}) didn't tell its version within {VERSION_LIMIT_S:g} s",
                    hint=_hint(),
                ) from error
            except Exception as error:
                raise UnavailableError(
                    f"Firecracker ({binary}) can't be run: {error}", hint=_hint()
                ) from error
            match = re.search(r"Firecracker v(\d+\.\d+\.\d+)", result.stdout.decode(errors="replace"))
            if match is None or _numbers(match[1]) < _OLDEST:
                found = match[1] if match else "of an unknown version"
                raise UnavailableError(
                    f"Firecracker ({binary}) is {found}: ramet needs 1.8 or newer",
                    hint="set RAMET_FIRECRACKER to a newer one",
                )
            self._version = match[1]
        return self._version

    def machine(
        self,
        *,
        accelerator: str,
        memory_bytes: int,
        cpus: int,
        guest: Guest = "linux",
        disk_bytes: tuple[int, ...] = (),
    ) -> Machine:
        """As `Driver.machine`. RAM is rounded up to whole MiB. Disks are raw files."""
        return Machine(
            accelerator=accelerator,
            machine_type=f"firecracker-{'.'.join(map(str, _numbers(self._known_version())))}",
            cpu_model="host",
            memory_bytes=-(-memory_bytes // MIB) * MIB,
            cpus=cpus,
            kernel_arguments=firecracker_config.KERNEL_ARGUMENTS if guest == "linux" else "",
            agent_ports=0,
            disks=tuple(
                Disk(name=f"disk{n or ''}", file=f"disk{n or ''}.raw", format="raw", size_bytes=size)
                for n, size in enumerate(disk_bytes)
            ),
            entropy_device=guest == "linux",
        )

    async def boot(self, directory: Path, machine: Machine) -> FirecrackerVmm:
        """As `Driver.boot`. The whole machine is in one file, `config.json`."""
        initramfs = (directory / INITRAMFS_FILE).exists()
        document = firecracker_config.boot_config(machine, initramfs=initramfs)
        with filesystem_errors("write", directory / CONFIG_FILE):
            (directory / CONFIG_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(document)) + b"\n")
        if not (directory / KERNEL_FILE).exists():
            raise VmmError(f"{directory / KERNEL_FILE} is missing")
        return await self._spawn(directory, machine, ["--config-file", CONFIG_FILE])

    async def restore(self, directory: Path, machine: Machine) -> FirecrackerVmm:
        """As `Driver.restore`."""
        if not (directory / MEM_FILE).is_file():
            raise VmmError(f"{directory / MEM_FILE} is missing")
        return await self._spawn(directory, machine, [])

    def attach(self, directory: Path, process: ProcessRef, machine: Machine) -> FirecrackerVmm:
        """As `Driver.attach`."""
        return FirecrackerVmm(directory, process, machine, self)

    def ending(self, directory: Path) -> Ending:
        """As `Driver.ending`.

        Firecracker ends when its guest resets, and has no power switch: a guest's agent that powers off says
        so on the console and then resets. Which is which is for the guest to say, and matters to it alone.
        """
        log = directory / VMM_LOG
        # The end of what an earlier start wrote may stand before it.
        exited = _EXITED in rings.tail(log, 4096).rpartition(_STARTED)[2]
        size_bytes = log.stat().st_size if log.exists() else 0
        # A log that is at its limit, which `rings.trim` may have emptied since, took no last line.
        is_full = size_bytes == 0 or size_bytes >= LARGEST_LOG_BYTES
        if not exited and not is_full:
            return Ending.DIED
        lines = [line.strip() for line in rings.tail(directory / CONSOLE_LOG, 4096).splitlines()]
        lines = [line for line in lines if line]
        if lines and b"reboot: " in lines[-1]:
            lines.pop()  # the kernel's own last line
        if lines and lines[-1] == _POWER_OFF:
            return Ending.POWERED_OFF
        return Ending.REBOOTED if exited else Ending.DIED

    async def _spawn(self, directory: Path, machine: Machine, arguments: list[str]) -> FirecrackerVmm:
        await self.version()
        log = directory / VMM_LOG
        with filesystem_errors("start Firecracker in", directory):
            for left in (SOCKET, VSOCK_SOCKET, METRICS_FILE):
                (directory / left).unlink(missing_ok=True)  # it wouldn't bind over sockets
            # It writes from the beginning of the file that it finds, so each start has a file of its own.
            if log.exists():
                log.replace(rings.previous(log))
            log.touch(mode=0o600)
            if machine.metrics:
                (directory / METRICS_FILE).touch(mode=0o600)
                arguments = [*arguments, "--metrics-path", METRICS_FILE]
            process = processes.spawn(
                [
                    self.program(),
                    *("--id", directory.name, "--api-sock", SOCKET),
                    *("--log-path", VMM_LOG, "--level", "Info"),
                    *arguments,
                ],
                directory=directory,
                log=directory / CONSOLE_LOG,
                largest_file_bytes=largest_file_bytes(machine),
            )
        vmm = FirecrackerVmm(directory, process, machine, self)
        try:
            await vmm.come_up(boots="--config-file" in arguments)
        except RametError as error:
            with anyio.CancelScope(shield=True):
                if not isinstance(error, VmmTimeoutError):
                    # Its API goes first, then it says why.
                    await processes.wait_ended(process, timeout_s=_LAST_WORDS_S)
                await vmm.kill()
            raise VmmError(
                f"Firecracker didn't come up: {_last_words(directory) or error.message}",
                hint="`ramet doctor` says what this machine lacks; RAMET_FIRECRACKER names another one",
            ) from error
        except BaseException:
            with anyio.CancelScope(shield=True):
                await vmm.kill()
            raise
        return vmm

    def program(self) -> str:
        """The program's path. Raises `UnavailableError` when there is none."""
        found = shutil.which(self._binary or PROGRAM)
        if found is None and self._binary is None:
            found = shutil.which(config.tools_directory() / PROGRAM)
        if found is None:
            raise UnavailableError(f"there is no Firecracker ({self._binary or PROGRAM})", hint=_hint())
        return found

    def _known_version(self) -> str:
        assert self._version is not None, "Firecracker.version() has to be awaited first"
        return self._version


class FirecrackerVmm:
    """One Firecracker process and the directory that it works in."""

    def __init__(self, directory: Path, process: ProcessRef, machine: Machine, driver: Firecracker) -> None:
        self.directory = directory
        self.process = process
        self._machine = machine
        self._driver = driver

    @property
    def _who(self) -> str:
        return self.directory.name

    @property
    def _saving_s(self) -> float:
        """How long saving all of RAM may take."""
        return self._machine.memory_bytes / (_SLOWEST_MIB_PER_S * MIB)

    async def come_up(self, *, boots: bool) -> None:
        """Wait until the API is there, after a start; if it `boots` a guest, until that runs.

        Raises `VmmError` when it ends instead.
        """
        connection = await connect_when_listening(
            self.directory, SOCKET, self.process, timeout_s=_START_LIMIT_S
        )
        connection.close()
        # The API listens before the machine is made, and answers after.
        if boots and (found := await self.status()) != "running":
            raise VmmError(f"{self._who}: Firecracker is {found}, not running")

    async def status(self) -> str:
        """As `Vmm.status`: `running`, `paused` or `not started`."""
        async with api(self.directory, who=self._who) as firecracker:
            answer = await firecracker.call("GET", "/")
        return str(answer.get("state", "unknown")).lower()

    async def pause(self) -> None:
        """As `Vmm.pause`."""
        await self._set_state("Paused")

    async def resume(self) -> None:
        """As `Vmm.resume`."""
        await self._give_up_saving()
        await self._set_state("Resumed")

    async def _set_state(self, state: Literal["Paused", "Resumed"]) -> None:
        async with api(self.directory, who=self._who) as firecracker:
            await firecracker.call("PATCH", "/vm", {"state": state})

    async def save_snapshot(self, vmstate: str, mem: str, *, diff: bool = False) -> None:
        """As `SavesSnapshot.save_snapshot`. Connections over the guest's vsock are reset by it
        (docs/snapshotting/snapshot-support.md, "Vsock device limitation").

        `diff` needs a machine with `track_changes`, or a restored one. When it fails or is cancelled,
        Firecracker may go on writing, until the guest is resumed.
        """
        for name in (vmstate, mem):
            if (self.directory / name).exists():
                raise VmmError(f"{self.directory / name} exists: only new files are ever written")
        body: dict[str, object] = {
            "snapshot_type": "Diff" if diff else "Full",
            "snapshot_path": vmstate,
            "mem_file_path": mem,
        }
        await self._give_up_saving()
        processes.limit_files(self.process, None)
        async with api(self.directory, who=self._who, longer_s=self._saving_s) as firecracker:
            await firecracker.call("PUT", "/snapshot/create", body)
        processes.limit_files(self.process, largest_file_bytes(self._machine))

    async def _give_up_saving(self) -> None:
        """End a save whose ramet was killed or has given up: all of RAM may take long, and nothing else is
        answered meanwhile. It fails at the limit on files, which was lifted for it. Else nothing happens.
        """
        largest_bytes = largest_file_bytes(self._machine)
        if processes.limit_of_files(self.process) == largest_bytes:
            return
        processes.limit_files(self.process, LARGEST_LOG_BYTES)
        try:
            # The write(2) that it is in may be one of 2 GiB and isn't stopped any more.
            async with api(self.directory, who=self._who, longer_s=self._saving_s) as firecracker:
                await firecracker.call("GET", "/")
        finally:
            processes.limit_files(self.process, largest_bytes)

    async def load_vmstate(self, name: str) -> None:
        """As `Vmm.load_vmstate`. The mem-file is mapped now, and not before."""
        abilities = self._driver.abilities
        body = firecracker_config.load_request(
            self._machine,
            name,
            network=Ability.OVERRIDES_NETWORK in abilities,
            vsock=Ability.OVERRIDES_VSOCK in abilities,
        )
        try:
            async with api(self.directory, who=self._who) as firecracker:
                await firecracker.call("PUT", "/snapshot/load", body)
        except VmmError as error:
            words = _last_words(self.directory)
            raise type(error)(f"{error.message}{f': {words}' if words else ''}", hint=error.hint) from error

    async def configuration(self) -> dict[str, Any]:
        """The machine as Firecracker has it: `GET /vm/config`."""
        async with api(self.directory, who=self._who) as firecracker:
            return await firecracker.call("GET", "/vm/config")

    async def metrics(self) -> dict[str, Any]:
        """Firecracker's own counters: those of its `docs/metrics.md`, each since it was last written down.

        Raises `VmmError`, also for a machine without `metrics`.
        """
        path = self.directory / METRICS_FILE
        if not self._machine.metrics:
            raise VmmError(f"{self._who}: its machine keeps no metrics")
        async with api(self.directory, who=self._who) as firecracker:
            await firecracker.call("PUT", "/actions", {"action_type": "FlushMetrics"})
        last = rings.tail(path, _LONGEST_METRICS_BYTES).rstrip().rpartition(b"\n")[2]
        try:
            return msgspec.json.decode(last, type=dict[str, Any])
        except msgspec.MsgspecError as error:
            raise VmmError(f"{self._who}: Firecracker's metrics can't be read: {error}") from error

    async def kill(self) -> None:
        """As `Vmm.kill`."""
        await processes.kill(self.process)


def _hint() -> str:
    return _INSTALL.format(tools=config.tools_directory())


def _numbers(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def _last_words(directory: Path) -> str:
    """What the log says went wrong, without times and thread names; empty when nothing did."""
    lines = rings.printable(rings.tail(directory / VMM_LOG, 4096)).splitlines()
    said = [re.sub(r"^\S+ \[[^\]]*\] ", "", line) for line in lines]
    wrong = [line for line in said if re.search(r"error|fail|panic|cannot|unable", line, re.IGNORECASE)]
    return " / ".join(wrong[-3:])[-1000:]
