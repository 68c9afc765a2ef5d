"""The requests to a Firecracker process, over its API.

Sources: Firecracker's `swagger/firecracker.yaml`, `docs/snapshotting/snapshot-support.md`, `docs/metrics.md`.
"""

from __future__ import annotations

import os
import re
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from ramet.drivers.firecracker import config, releases
from ramet.drivers.firecracker.api import Api, api
from ramet.drivers.http_api import SOCKET, step
from ramet.drivers.interface import Ability
from ramet.drivers.log_limits import LARGEST_LOG_BYTES, largest_file_bytes, with_disk
from ramet.drivers.sessions import Sessions, session_limit_s
from ramet.drivers.vmstate_files import has_checksum, path_of, require_empty
from ramet.errors import VmmError, VmmTimeoutError
from ramet.model.record import Disk, Machine, ProcessRef
from ramet.paths import METRICS_FILE, VMM_LOG
from ramet.system import bounded_log, processes, rlimits
from ramet.system.files import filesystem_errors, lengthen
from ramet.system.listening import connect_when_listening
from ramet.system.pause_watchdog import ResumeSteps
from ramet.text import printable
from ramet.units import KIB, MIB

_START_LIMIT_S: Final = 20.0
_API_PANICKED: Final = "VMM disconnected: RecvError"
# A slow disk's pace, for how long saving all of RAM may take.
_SLOWEST_MIB_PER_S: Final = 10
_LONGEST_METRICS_BYTES: Final = 256 * KIB
_NO_FILE: Final = "/dev/null/none"
_RAM_REFUSED: Final = "on the memory backing file"
_SAVE_NOTHING: Final[dict[str, object]] = {
    "snapshot_type": "Full",
    "snapshot_path": _NO_FILE,
    "mem_file_path": _NO_FILE,
}
"""Prepares the devices for a save and then writes none: the files can't be opened."""


_RESUME_STEP: Final = step("PATCH", "/vm", {"state": "Resumed"})
_RESUME_STEPS: Final = ResumeSteps(SOCKET, (_RESUME_STEP,))
# Resuming a guest that runs would deafen it as well: an answer that has its state is waited for first.
_RESUME_STEPS_OF_THE_DEAFENED: Final = ResumeSteps(
    SOCKET,
    (
        ("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", r'"state": ?"[^"]*"'),
        step("PUT", "/snapshot/create", _SAVE_NOTHING),
        _RESUME_STEP,
    ),
    runs=r'"state": ?"Running"',
)


class FirecrackerVmm:
    """A Firecracker process and the directory that it works in.

    `abilities` are for a process that a vmstate is to be loaded into; `just_loaded` is `Driver.attach`'s.
    """

    def __init__(
        self,
        directory: Path,
        process: ProcessRef,
        machine: Machine,
        abilities: frozenset[Ability] = frozenset(),
        *,
        just_loaded: bool = False,
    ) -> None:
        self.directory = directory
        self.process = process
        self._machine = machine
        self._abilities = abilities
        self._release = releases.release_of(machine.machine_type)
        self._is_reset = just_loaded
        """True if the paused guest will learn that its connections are reset.

        Its state has been saved, or was loaded, since it last ran. This object did that itself, or was told.
        """
        self._sessions = Sessions(self._lease)

    @property
    def _who(self) -> str:
        return self.directory.name

    def _lease(self, limit_s: float | None) -> AbstractAsyncContextManager[Api]:
        return api(self.directory, who=self._who, limit_s=limit_s)

    def session(self) -> AbstractAsyncContextManager[None]:
        """Lease the VMM's API (`Vmm.session`)."""
        return self._sessions.open(session_limit_s(self._machine))

    def resume_steps(self) -> ResumeSteps:
        """Return the requests that resume the guest (`Vmm.resume_steps`)."""
        return _RESUME_STEPS_OF_THE_DEAFENED if self._is_deafened_by_resume else _RESUME_STEPS

    @property
    def _is_deafened_by_resume(self) -> bool:
        return self._release is not None and releases.deafens(self._release)

    @property
    def _saving_s(self) -> float:
        """Longest time for saving all of RAM."""
        return self._machine.memory_bytes / (_SLOWEST_MIB_PER_S * MIB)

    async def come_up(self, *, boots: bool) -> None:
        """Wait until the API is there, after a start; if it `boots` a guest, until that runs.

        Raises `VmmError` when it ends instead.
        """
        connection = await connect_when_listening(
            self.directory, SOCKET, self.process, timeout_s=_START_LIMIT_S
        )
        async with self._sessions.use() as firecracker:
            firecracker.adopt(connection)
        # The API listens before the machine is made, and answers after.
        if boots and (status := await self.status()) != "running":
            raise VmmError(f"{self._who}: Firecracker is {status}, not running")

    async def status(self) -> str:
        """Return the run state (`Vmm.status`): `running`, `paused` or `not started`."""
        async with self._sessions.use() as firecracker:
            answer = await firecracker.call("GET", "/")
        return str(answer.get("state", "unknown")).lower()

    async def own_version(self) -> str:
        """Return the process's own version (`TellsVersion.own_version`), from `GET /version`."""
        async with self._sessions.use() as firecracker:
            answer = await firecracker.call("GET", "/version")
        return str(answer.get("firecracker_version", ""))

    async def pause(self) -> None:
        """Pause the guest (`Vmm.pause`)."""
        self._is_reset = False
        await self._set_state("Paused")

    async def resume(self) -> None:
        """Resume the guest (`Vmm.resume`). A guest that runs isn't resumed again.

        A release that a bare resume deafens has its state saved before, into nothing.
        """
        await self._give_up_saving()
        if self._is_deafened_by_resume and not self._is_reset:
            if await self.status() == "running":
                return
            await self._save_nothing()
        await self._set_state("Resumed")
        self._is_reset = False

    async def _save_nothing(self) -> None:
        async with self._sessions.use() as firecracker:
            try:
                await firecracker.call("PUT", "/snapshot/create", _SAVE_NOTHING, longer_s=self._saving_s)
            except VmmTimeoutError:
                raise
            except VmmError:
                pass  # refused, as it has to be; if it has ended, the resume says so

    async def _set_state(self, state: Literal["Paused", "Resumed"]) -> None:
        async with self._sessions.use() as firecracker:
            await firecracker.call("PATCH", "/vm", {"state": state})

    async def save_vmstate(self, vmstate_fd: int, *, changed_fd: int | None = None) -> None:
        """Save device and CPU state (`SavesState.save_vmstate`).

        Saving resets connections over the guest's vsock. Firecracker saves RAM whenever it saves state, and
        state first (`create_snapshot` in its `src/vmm/src/persist.rs`). So it is given a file for RAM that
        can't be opened, and that refusal tells that the state is complete: no RAM is read, copied or listed.

        With `changed_fd`, an empty file, it saves a `Diff` instead: the pages that changed since its last
        save, holes elsewhere, for comparison. They lack what was written to RAM from outside. That needs a
        machine with `track_changes`, or a restored one.
        """
        require_empty(vmstate_fd)
        if changed_fd is not None:
            return await self._save_difference(vmstate_fd, changed_fd)
        try:
            await self._create_snapshot("Full", path_of(vmstate_fd), _NO_FILE)
        except VmmTimeoutError:
            raise
        except VmmError as refusal:
            # Its words are its release's, the checksum at the end of a state isn't.
            size_bytes = os.fstat(vmstate_fd).st_size
            if size_bytes and (_RAM_REFUSED in refusal.message or has_checksum(vmstate_fd)):
                return None
            if size_bytes or _RAM_REFUSED not in refusal.message:
                raise
        # One that asks for RAM first. No release that was looked at does.
        changes = os.memfd_create("changed", os.MFD_CLOEXEC)
        try:
            return await self._save_difference(vmstate_fd, changes)
        finally:
            os.close(changes)

    async def _save_difference(self, vmstate_fd: int, changed_fd: int) -> None:
        rlimits.limit_files(self.process, None)  # it holds for memfds, too
        try:
            await self._create_snapshot("Diff", path_of(vmstate_fd), path_of(changed_fd))
        finally:
            rlimits.limit_files(self.process, largest_file_bytes(self._machine))

    async def _create_snapshot(self, kind: Literal["Full", "Diff"], vmstate: str, mem: str) -> None:
        body: dict[str, object] = {"snapshot_type": kind, "snapshot_path": vmstate, "mem_file_path": mem}
        async with self._sessions.use() as firecracker:
            try:
                await firecracker.call("PUT", "/snapshot/create", body, longer_s=self._saving_s)
            except VmmTimeoutError:
                raise
            except VmmError:
                self._is_reset = True  # a file was refused; devices are prepared before any is opened
                raise
        self._is_reset = True

    async def save_snapshot(self, vmstate: str, mem: str, *, diff: bool = False) -> None:
        """Save state and RAM (`SavesSnapshot.save_snapshot`).

        Saving resets connections over the guest's vsock. Source: docs/snapshotting/snapshot-support.md,
        "Vsock device limitation". `diff` needs a machine with `track_changes`, or a restored one. When the
        call fails or is cancelled, Firecracker may continue writing, until the guest is resumed.
        """
        for name in (vmstate, mem):
            if (self.directory / name).exists():
                raise VmmError(f"{self.directory / name} exists: only new files are ever written")
        await self._give_up_saving()
        rlimits.limit_files(self.process, None)
        await self._create_snapshot("Diff" if diff else "Full", vmstate, mem)
        rlimits.limit_files(self.process, largest_file_bytes(self._machine))

    async def _give_up_saving(self) -> None:
        """End a save whose ramet was killed or has given up; without such a save do nothing.

        Saving all of RAM may take long, and Firecracker answers nothing else meanwhile. The save fails at the
        limit on files, which was lifted for it and is set again.
        """
        largest_bytes = largest_file_bytes(self._machine)
        if rlimits.limit_of_files(self.process) == largest_bytes:
            return
        rlimits.limit_files(self.process, LARGEST_LOG_BYTES)
        try:
            # The write(2) that it is in may be one of 2 GiB and isn't stopped any more.
            async with self._sessions.use() as firecracker:
                await firecracker.call("GET", "/", longer_s=self._saving_s)
        finally:
            rlimits.limit_files(self.process, largest_bytes)

    async def load_vmstate(self, name: str) -> None:
        """Load device and CPU state (`Vmm.load_vmstate`). The mem-file is mapped now, and not before."""
        await self._load(name, resume=False)

    async def load_and_resume(self, name: str) -> None:
        """Load and resume in one request (`ResumesOnLoad.load_and_resume`), by `resume_vm`."""
        await self._load(name, resume=True)

    async def _load(self, name: str, *, resume: bool) -> None:
        body = config.load_request(
            self._machine,
            name,
            resume=resume,
            network=Ability.OVERRIDES_NETWORK in self._abilities,
            vsock=Ability.OVERRIDES_VSOCK in self._abilities,
            track_dirty_pages=(self._release or (0, 0)) >= releases.TRACKS_DIRTY_PAGES_SINCE,
        )
        self._is_reset = not resume
        try:
            async with self._sessions.use() as firecracker:
                await firecracker.call("PUT", "/snapshot/load", body)
        except VmmError as error:
            words = last_words(self.directory)
            raise type(error)(f"{error.message}{f': {words}' if words else ''}", hint=error.hint) from error

    async def grow_disk(self, disk: Disk) -> None:
        """Make a disk larger (`ResizesDisks.grow_disk`).

        Firecracker opens the path again, and tells the guest the size that it finds. Source: its
        `docs/api_requests/patch-block.md`.
        """
        rlimits.limit_files(self.process, largest_file_bytes(with_disk(self._machine, disk)))
        with filesystem_errors("resize", self.directory / disk.file):
            lengthen(self.directory / disk.file, disk.size_bytes)
        body: dict[str, object] = {"drive_id": disk.name, "path_on_host": disk.file}
        async with self._sessions.use() as firecracker:
            await firecracker.call("PATCH", f"/drives/{disk.name}", body)

    async def configuration(self) -> dict[str, Any]:
        """Return Firecracker's own description of the machine: `GET /vm/config`."""
        async with self._sessions.use() as firecracker:
            return await firecracker.call("GET", "/vm/config")

    async def metrics(self) -> dict[str, Any]:
        """Return Firecracker's own counters (its `docs/metrics.md`), each since it was last written.

        Raises `VmmError`, also for a machine without `metrics`.
        """
        path = self.directory / METRICS_FILE
        if not self._machine.metrics:
            raise VmmError(f"{self._who}: its machine keeps no metrics")
        async with self._sessions.use() as firecracker:
            await firecracker.call("PUT", "/actions", {"action_type": "FlushMetrics"})
        last = bounded_log.tail(path, _LONGEST_METRICS_BYTES).rstrip().rpartition(b"\n")[2]
        try:
            return msgspec.json.decode(last, type=dict[str, Any])
        except (msgspec.MsgspecError, RecursionError) as error:
            raise VmmError(f"{self._who}: Firecracker's metrics can't be read: {error}") from error

    async def kill(self) -> None:
        """Kill the VMM (`Vmm.kill`)."""
        await processes.kill(self.process)


def last_words(directory: Path) -> str:
    """Return the log's last errors, without times and thread names; empty when there are none."""
    lines = printable(bounded_log.tail(directory / VMM_LOG, 4096)).splitlines()
    reasons = [re.sub(r"^\S+ \[[^\]]*\] ", "", line) for line in lines]
    wrong = [line for line in reasons if re.search(r"error|fail|panic|cannot|unable", line, re.IGNORECASE)]
    return " / ".join(wrong[-3:])[-1000:]


def lost_its_reason(directory: Path) -> bool:
    """Tell whether a Firecracker that ended hasn't given the reason; started anew it may give it.

    Its API's thread may wait for the machine to be made, and ends the process in a panic when that fails,
    perhaps before the reason is written (`VmmRequest` in its `src/firecracker/src/api_server/mod.rs`; seen
    with 1.12).
    """
    return last_words(directory).endswith(_API_PANICKED)
