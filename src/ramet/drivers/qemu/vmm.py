"""The requests to a QEMU process, over its monitor.

Sources: QEMU's QMP reference for `stop`, `cont`, `xen-save-devices-state`, `migrate-incoming`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Final

import anyio
import msgspec

from ramet.drivers.log_limits import largest_file_bytes, with_disk
from ramet.drivers.qemu import disks
from ramet.drivers.qemu import monitor as qemu_monitor
from ramet.drivers.sessions import Sessions, session_limit_s
from ramet.drivers.vmstate_files import path_of, require_empty
from ramet.errors import VmmError, VmmTimeoutError
from ramet.model.record import Disk, Machine, ProcessRef
from ramet.paths import VMM_LOG
from ramet.system import bounded_log, processes, rlimits
from ramet.system.pause_watchdog import ResumeSteps
from ramet.text import printable
from ramet.units import MIB

STARTED: Final = "ramet: started "
"""Text that ramet writes to QEMU's log before each start."""
_RESUME_STEPS: Final = ResumeSteps(
    qemu_monitor.SOCKET,
    (
        ("", r'"QMP"'),
        ('{"execute":"qmp_capabilities"}\n', r'"return"'),
        ('{"execute":"cont"}\n', r'"(return|error)"'),
    ),
)
_SHORTENING_BYTES_PER_S: Final = 256 * MIB
_SLOWEST_BYTES_PER_S: Final = 10 * MIB
_POLL_S: Final = (0.02, 0.5)


class QemuVmm:
    """A QEMU process and the directory that it works in."""

    def __init__(self, directory: Path, process: ProcessRef, machine: Machine) -> None:
        self.directory = directory
        self.process = process
        self._machine = machine
        self._sessions = Sessions(self._lease)

    @property
    def _who(self) -> str:
        return self.directory.name

    def _lease(self, limit_s: float | None) -> AbstractAsyncContextManager[qemu_monitor.Monitor]:
        if limit_s is None:
            return qemu_monitor.monitor(self.directory, who=self._who)
        return qemu_monitor.monitor(self.directory, who=self._who, limit_s=limit_s)

    def session(self) -> AbstractAsyncContextManager[None]:
        """Lease the VMM's monitor (`Vmm.session`)."""
        return self._sessions.open(session_limit_s(self._machine))

    def resume_steps(self) -> ResumeSteps:
        """Return the commands that resume the guest (`Vmm.resume_steps`)."""
        return _RESUME_STEPS

    async def status(self) -> str:
        """Return the run state (`Vmm.status`), QEMU's RunState, such as `running` or `inmigrate`."""
        async with self._sessions.use() as monitor:
            answer = await monitor.execute("query-status")
        return str(answer["status"])

    async def own_version(self) -> str:
        """Return the process's own version (`TellsVersion.own_version`), from `query-version`."""
        async with self._sessions.use() as monitor:
            answer = await monitor.execute("query-version")
        return ".".join(str(answer["qemu"][part]) for part in ("major", "minor", "micro"))

    async def come_up(self) -> str:
        """Wait until QEMU has made every device and answers, and return the version in its greeting.

        Raises as `status`.
        """
        async with self._sessions.use() as monitor:
            return monitor.version

    async def pause(self) -> None:
        """Pause the guest (`Vmm.pause`). Returns when the virtual CPUs are stopped and disks are flushed."""
        async with self._sessions.use() as monitor:
            await monitor.execute("stop")

    async def resume(self) -> None:
        """Resume the guest (`Vmm.resume`)."""
        async with self._sessions.use() as monitor:
            await monitor.execute("cont")

    async def save_vmstate(self, vmstate_fd: int) -> None:
        """Save device and CPU state (`SavesState.save_vmstate`), by `xen-save-devices-state`.

        `live: false` keeps the image locks.
        """
        require_empty(vmstate_fd)
        async with self._sessions.use() as monitor:
            await monitor.execute("xen-save-devices-state", filename=path_of(vmstate_fd), live=False)

    async def load_vmstate(self, name: str) -> None:
        """Load device and CPU state (`Vmm.load_vmstate`).

        QEMU gets the open file, so it loads the opened content.
        """
        await self._load(name, resume=False)

    async def load_and_resume(self, name: str) -> None:
        """Load and resume in one request (`ResumesOnLoad.load_and_resume`).

        A `cont` that comes before the load is carried out after it (`qmp_cont` in QEMU's
        `monitor/qmp-cmds.c`: in the run state `inmigrate` it sets `autostart`).
        """
        await self._load(name, resume=True)

    async def _load(self, name: str, *, resume: bool) -> None:
        vmstate_fd = os.open(self.directory / name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            async with self._sessions.use() as monitor:
                await monitor.migrated_from(vmstate_fd, *(["cont"] if resume else []))
        except VmmError as error:
            words = last_words(self.directory / VMM_LOG)
            raise type(error)(f"{error.message}: {words}", hint=error.hint) from error
        finally:
            os.close(vmstate_fd)

    async def prepare_overlays(self, pairs: Sequence[tuple[Disk, Disk]]) -> None:
        """Have QEMU open the overlays (`FreezesDisks.prepare_overlays`)."""
        async with self._sessions.use() as monitor:
            await disks.prepare_overlays(monitor, pairs)

    async def switch_overlays(self, pairs: Sequence[tuple[Disk, Disk]]) -> None:
        """Switch writes to the overlays (`FreezesDisks.switch_overlays`), in one transaction."""
        async with self._sessions.use() as monitor:
            await disks.switch_overlays(monitor, pairs)

    async def drop_overlays(self, pairs: Sequence[tuple[Disk, Disk]]) -> None:
        """Have QEMU close unused overlays (`FreezesDisks.drop_overlays`)."""
        async with self._sessions.use() as monitor:
            await disks.drop_overlays(monitor, pairs)

    async def active_files(self) -> dict[str, str]:
        """Return the file that each disk writes to (`FreezesDisks.active_files`)."""
        async with self._sessions.use() as monitor:
            return await disks.active_files(monitor)

    async def grow_disk(self, disk: Disk) -> None:
        """Make a disk larger (`ResizesDisks.grow_disk`), by `block_resize`."""
        rlimits.limit_files(self.process, largest_file_bytes(with_disk(self._machine, disk)))
        async with self._sessions.use() as monitor:
            await disks.grow_disk(monitor, disk)

    async def disk_errors(self) -> dict[str, str]:
        """Return the disks' last errors (`NamesDiskErrors.disk_errors`)."""
        async with self._sessions.use() as monitor:
            return await disks.disk_errors(monitor)

    async def shorten(self, disk: Disk, *, bytes_per_s: int = _SHORTENING_BYTES_PER_S) -> Disk:
        """Shorten a disk's chain (`ShortensDisks.shorten`), by `block-stream`."""
        if len(disk.backing) < 2:
            return disk
        limit_s = 60.0 + disk.size_bytes / _SLOWEST_BYTES_PER_S
        try:
            with anyio.fail_after(limit_s):
                async with self._sessions.use() as monitor:
                    await disks.start_shortening(monitor, disk, speed_bytes_per_s=bytes_per_s)
                pause_s, longest_s = _POLL_S
                while True:
                    await anyio.sleep(pause_s)
                    async with self._sessions.use() as monitor:
                        done = await disks.shortened(monitor, disk)
                    if done is not None:
                        break
                    pause_s = min(2 * pause_s, longest_s)
        except BaseException as error:
            with anyio.CancelScope(shield=True):
                await self.stop_shortening(disk)
            if isinstance(error, TimeoutError):
                raise VmmTimeoutError(
                    f"{self._who}: its disk `{disk.name}` wasn't shortened within {limit_s:.0f} s"
                ) from error
            raise
        return msgspec.structs.replace(disk, backing=disk.backing[:1]) if done else disk

    async def stop_shortening(self, disk: Disk) -> None:
        """Cancel the shortening of a disk (`ShortensDisks.stop_shortening`)."""
        async with self._sessions.use() as monitor:
            await disks.stop_shortening(monitor, disk)

    async def kill(self) -> None:
        """Kill the VMM (`Vmm.kill`)."""
        await processes.kill(self.process)


def last_words(log: Path) -> str:
    """Return the last lines of QEMU's log since its start, for an error message."""
    lines = printable(bounded_log.tail(log, 4096)).rpartition(STARTED)[2].splitlines()[1:]
    reasons = [
        line
        for line in lines
        if line and not line.startswith(("runstate_set", "qemu_system_shutdown_request"))
    ]
    return " / ".join(reasons[-5:]) or "it said nothing"
