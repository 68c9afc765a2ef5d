"""The requests to a Cloud Hypervisor process, over its API.

Sources: Cloud Hypervisor's `docs/snapshot_restore.md`, `vmm/src/api/openapi/cloud-hypervisor.yaml`,
`vmm/src/migration.rs`, `vmm/src/memory_manager.rs`, at v53.0.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import anyio
import msgspec

from ramet.drivers.cloud_hypervisor import config, disks, releases, state, vmstate
from ramet.drivers.cloud_hypervisor.api import Api, api, path_of, words_of
from ramet.drivers.cloud_hypervisor.files import LOADING, loading, read, require_mem_file, saving
from ramet.drivers.cloud_hypervisor.ranges import Source, delta_source
from ramet.drivers.http_api import SOCKET, Answer, step
from ramet.drivers.log_limits import largest_file_bytes, with_disk
from ramet.drivers.sessions import Sessions, session_limit_s
from ramet.drivers.vmstate_files import require_empty
from ramet.errors import DamagedError, UnavailableError, VmmError
from ramet.model.record import DeltaRun, Disk, Machine, ProcessRef
from ramet.paths import KERNEL_FILE, MEM_FILE, VSOCK_SOCKET
from ramet.system import processes, rlimits, threads
from ramet.system.files import filesystem_errors, new_file, write_all
from ramet.system.pause_watchdog import ResumeSteps
from ramet.units import MIB

_CONFIG, _STATE, _RANGES = "config.json", "state.json", "memory-ranges"
"""Cloud Hypervisor's names, in the directory of a snapshot."""
_VMSTATE: Final = "vmstate"
_NEW_FILE: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_SLOWEST_MIB_PER_S: Final = 10
"""A slow disk's pace, for what may be copied of RAM."""
# The wanted refusal: `memory-ranges` is there already, and is opened after both documents are written.
_RAM_REFUSED: Final = re.compile(r"memory-ranges|File exists \(os error 17\)")
_NO_NESTED_STATE: Final = "GetNestedState"
_RESUME_STEPS: Final = ResumeSteps(SOCKET, (step("PUT", path_of("vm.resume")),))


class CloudHypervisorVmm:
    """A Cloud Hypervisor process and the directory that it works in.

    `version` is the process's; None: it is asked when it matters.
    """

    def __init__(self, directory: Path, process: ProcessRef, machine: Machine, version: str | None) -> None:
        self.directory = directory
        self.process = process
        self._machine = machine
        self._version = version
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
        """Return the request that resumes the guest (`Vmm.resume_steps`). A guest that runs refuses it."""
        return _RESUME_STEPS

    async def own_version(self) -> str:
        """Return the process's own version (`TellsVersion.own_version`), from `GET vmm.ping`."""
        answer = await self._call("GET", "vmm.ping")
        version = str(answer.get("build_version", "")).removeprefix("v")
        if vmstate.VERSION.fullmatch(version) is None:
            return ""
        self._version = version
        return version

    async def status(self) -> str:
        """Return the run state (`Vmm.status`), `not started` without a machine."""
        answer = await self._request("GET", "vm.info")
        if answer.status == 404:
            return "not started"
        if answer.is_refusal:
            raise self._refused("GET", "vm.info", answer)
        try:
            return msgspec.json.decode(answer.content, type=_Info).state.lower()
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise VmmError(f"{self._who}: Cloud Hypervisor doesn't tell its state: {error}") from error

    async def create_and_boot(self, *, initramfs: bool) -> None:
        """Make the machine and let it boot. The kernel's path exists only for the boot.

        A guest's reset makes Cloud Hypervisor boot the machine again in the same process: a restored guest
        on the memory of its parent. Without a kernel the VMM ends instead.

        Raises `VmmError`. The VMM may have a machine then, and the caller ends it.
        """
        once = self.directory / config.KERNEL_ONCE
        with filesystem_errors("make", once):
            once.unlink(missing_ok=True)
            once.symlink_to(KERNEL_FILE)
        try:
            await self._call("PUT", "vm.create", config.vm_config(self._machine, initramfs=initramfs))
            await self._call("PUT", "vm.boot")
        finally:
            once.unlink(missing_ok=True)

    async def pause(self) -> None:
        """Pause the guest (`Vmm.pause`). Block requests are drained, and the clock is saved."""
        await self._set_state("vm.pause", "paused")

    async def resume(self) -> None:
        """Resume the guest (`Vmm.resume`). Connections over the guest's vsock stay."""
        await self._set_state("vm.resume", "running")

    async def _set_state(self, request: str, wanted: str) -> None:
        """Make a request. A refusal is no error if the guest is in the wanted state already."""
        answer = await self._request("PUT", request)
        if answer.is_refusal and await self.status() != wanted:
            raise self._refused("PUT", request, answer)

    async def save_vmstate(self, vmstate_fd: int) -> None:
        """Save device and CPU state (`SavesState.save_vmstate`).

        Cloud Hypervisor writes its configuration and its state, and then all of RAM to a *new* file
        `memory-ranges`. There is one already, so it refuses at that point: no RAM is read or written. Whether
        the two documents are whole is told by parsing them: a full disk cuts the state, with the same words.
        """
        require_empty(vmstate_fd)
        with _damage_as_vmm_errors(), saving(self.directory) as directory, ExitStack() as closing:
            with filesystem_errors("make", directory / _RANGES):
                # Not removed on an error either: the VMM may still be on its way there.
                ranges_fd = os.open(directory / _RANGES, _NEW_FILE, 0o600)
                closing.callback(os.close, ranges_fd)
            with anyio.CancelScope(shield=True):
                answer = await self._snapshot(directory)
            if not answer.is_refusal:
                raise VmmError(f"{self._who}: Cloud Hypervisor wrote RAM over a file that was there")
            words = words_of(answer.content)
            if _NO_NESTED_STATE in words:
                raise UnavailableError(
                    f"{self._who}: KVM refuses KVM_GET_NESTED_STATE here, which Cloud Hypervisor asks for"
                    f" whenever it saves: {words}",
                    hint="the guest can't be captured on this machine; run it with another driver",
                )
            if not _RAM_REFUSED.search(words) or os.fstat(ranges_fd).st_size:
                raise self._refused("PUT", "vm.snapshot", answer)
            await self._write_vmstate(directory, vmstate_fd)

    async def save_with_ram(self, vmstate: str, mem: str) -> None:
        """Write state and all of RAM to two *new* files in the directory, for comparisons.

        The guest is paused before and after. Cloud Hypervisor keeps no list of changed pages, so this class
        is no `SavesSnapshot`. An existing file of either name is refused. Raises `VmmError`.
        """
        for name in (vmstate, mem):
            if (self.directory / name).exists():
                raise VmmError(f"{self.directory / name} exists: only new files are ever written")
        with _damage_as_vmm_errors(), saving(self.directory) as directory:
            before = rlimits.limit_of_files(self.process)
            rlimits.limit_files(self.process, None)
            try:
                with anyio.CancelScope(shield=True):
                    answer = await self._snapshot(directory)
            finally:
                rlimits.limit_files(self.process, before)
            if answer.is_refusal:
                raise self._refused("PUT", "vm.snapshot", answer)
            with filesystem_errors("read", directory / _RANGES):
                saved_bytes = (directory / _RANGES).stat().st_size
            if saved_bytes != self._machine.memory_bytes:
                raise VmmError(
                    f"{self._who}: Cloud Hypervisor saved {saved_bytes} bytes of RAM, not"
                    f" {self._machine.memory_bytes}"
                )
            with filesystem_errors("write", self.directory / vmstate):
                with new_file(directory / _VMSTATE) as descriptor:
                    await self._write_vmstate(directory, descriptor)
                (directory / _RANGES).rename(self.directory / mem)
                (directory / _VMSTATE).rename(self.directory / vmstate)

    async def _snapshot(self, directory: Path) -> Answer:
        """Make the request. The answer has to be waited for, also by a caller that is cancelled.

        Otherwise the directory would be removed under a VMM that writes to it: without `memory-ranges` there,
        all of RAM is written.
        """
        body: dict[str, object] = {"destination_url": f"file://{directory.name}"}
        longer_s = self._machine.memory_bytes / (_SLOWEST_MIB_PER_S * MIB)
        return await self._request("PUT", "vm.snapshot", body, longer_s=longer_s)

    async def _write_vmstate(self, directory: Path, vmstate_fd: int) -> None:
        """Write the two documents in `directory` into one file, once they are known to be whole."""
        where = f"{self._who}'s new vmstate"
        config_text = read(directory / _CONFIG, config.MOST_BYTES)
        state_text = read(directory / _STATE, state.most_bytes(self._machine.cpus))
        self._parsed(config_text, state_text, where=where)
        content = vmstate.encode(await self._known_version(), config_text, state_text)
        with filesystem_errors("write", where):
            write_all(vmstate_fd, content, 0)

    async def load_vmstate(self, name: str) -> None:
        """Load device and CPU state (`Vmm.load_vmstate`). The mem-file is mapped now, and not before."""
        await self._load(name, None, (), resume=False)

    async def load_and_resume(self, name: str) -> None:
        """Load and resume in one request (`ResumesOnLoad.load_and_resume`), by `resume`."""
        await self._load(name, None, (), resume=True)

    async def load_with_delta(
        self, name: str, delta_fd: int, runs: Sequence[DeltaRun], *, resume: bool
    ) -> None:
        """Load a vmstate and a delta in one request (`LoadsDelta.load_with_delta`).

        Cloud Hypervisor copies the delta into its private mapping before it makes devices, which read the
        indexes of their queues from RAM (`fill_saved_regions` in its `vmm/src/memory_manager.rs`).
        """
        await self._load(name, delta_fd, runs, resume=resume)

    async def _load(self, name: str, delta_fd: int | None, runs: Sequence[DeltaRun], *, resume: bool) -> None:
        regions = releases.ram_regions(self._machine.memory_bytes)
        where = f"{self._who}/{name}"
        version = await self._known_version()
        is_hidden = False
        with _damage_as_vmm_errors():
            require_mem_file(self.directory, self._machine)
            disks.require_disks(self.directory, self._machine.disks)
            content = read(self.directory / name, vmstate.most_bytes(self._machine.cpus))
            saved = vmstate.decode(content, version=version, where=where)
            saved_state = self._parsed(bytes(saved.config), bytes(saved.state), where=where)
            with ExitStack() as leaving:
                source = Source((), "", 0)
                if delta_fd is not None:
                    made = delta_source(delta_fd, runs, self.directory / MEM_FILE, regions)
                    source = await threads.run(leaving.enter_context, made)
                directory = leaving.enter_context(loading(self.directory))
                with filesystem_errors("write", directory):
                    restored = config.restore_config(self._machine)
                    (directory / _CONFIG).write_bytes(msgspec.json.encode(restored))
                    (directory / _STATE).write_bytes(saved_state.for_restore(source.ranges))
                    if source.ranges:
                        (directory / _RANGES).symlink_to(source.path)
                if any(disks.foreign_format(self.directory / disk.file) for disk in self._machine.disks):
                    if (status := await self.status()) != "not started":
                        raise VmmError(f"{self._who}: its VMM has a guest, which is {status}")
                    is_hidden = leaving.enter_context(
                        disks.magics_hidden(self.directory, self._machine.disks)
                    )
                await self._restore(source, resume=resume and not is_hidden)
        if is_hidden and resume:
            await self.resume()

    async def grow_disk(self, disk: Disk) -> None:
        """Make a disk larger (`ResizesDisks.grow_disk`), by `vm.resize-disk`, which makes the file longer."""
        rlimits.limit_files(self.process, largest_file_bytes(with_disk(self._machine, disk)))
        body: dict[str, object] = {"id": disk.name, "desired_size": disk.size_bytes}
        await self._call("PUT", "vm.resize-disk", body)

    async def _restore(self, source: Source, *, resume: bool) -> None:
        body: dict[str, object] = {
            "source_url": f"file://{LOADING}",
            "prefault": False,
            "resume": resume,
        }
        longer_s = source.data_bytes / (_SLOWEST_MIB_PER_S * MIB)
        # A refused restore leaves the VMM fit for the next one, and perhaps a socket, over which it wouldn't
        # bind.
        with filesystem_errors("remove", self.directory / VSOCK_SOCKET):
            (self.directory / VSOCK_SOCKET).unlink(missing_ok=True)
        answer = await self._request("PUT", "vm.restore", body, longer_s=longer_s)
        if answer.is_refusal:
            raise self._refused("PUT", "vm.restore", answer)

    def _parsed(self, config_text: bytes, state_text: bytes, *, where: str) -> state.State:
        """Parse both documents of a vmstate, and check both against the machine. Raises `DamagedError`."""
        config.require_fits(config.parse(config_text, where=where), self._machine, where=where)
        return state.parse(
            state_text,
            regions=releases.ram_regions(self._machine.memory_bytes),
            cpus=self._machine.cpus,
            devices=config.device_ids(self._machine),
            where=where,
        )

    async def _known_version(self) -> str:
        version = self._version or await self.own_version()
        if not version:
            raise VmmError(f"{self._who}: Cloud Hypervisor doesn't tell its version, which a vmstate needs")
        return version

    async def kill(self) -> None:
        """Kill the VMM (`Vmm.kill`)."""
        await processes.kill(self.process)

    async def _call(self, method: str, request: str, body: dict[str, object] | None = None) -> dict[str, Any]:
        async with self._sessions.use() as vmm:
            return await vmm.call(method, path_of(request), body)

    async def _request(
        self, method: str, request: str, body: dict[str, object] | None = None, *, longer_s: float = 0.0
    ) -> Answer:
        async with self._sessions.use() as vmm:
            return await vmm.request(method, path_of(request), body, longer_s=longer_s)

    def _refused(self, method: str, request: str, answer: Answer) -> VmmError:
        words = words_of(answer.content)
        return VmmError(f"{self._who}: Cloud Hypervisor refused {method} {request}: {words}")


class _Info(msgspec.Struct, frozen=True):
    state: str


@contextmanager
def _damage_as_vmm_errors() -> Iterator[None]:
    """Raise `VmmError` for documents that a VMM wrote, or is to load, and that aren't whole."""
    try:
        yield
    except DamagedError as error:
        raise VmmError(error.message, hint=error.hint) from error
