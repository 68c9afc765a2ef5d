"""The driver interface: how a VMM of any hypervisor is started, asked and ended.

Decisions are made by ability, never by name. A request that not every VMM takes is a separate Protocol
(`SavesState`, `ResumesOnLoad`, `LoadsDelta`, `FreezesDisks`, `StartsEmpty`); an `Ability` says how a VMM
behaves.

**A capture** (`ramet.engine.capture`) makes its requests in one `Vmm.session`:

1. `FreezesDisks.prepare_overlays` has the VMM open an empty overlay for each disk. The guest still runs.
2. The pause watchdog gets `Vmm.resume_steps`: it resumes the guest if ramet is killed during the pause.
3. `Vmm.pause` stops the virtual CPUs. The pause begins.
4. `FreezesDisks.switch_overlays` sends writes to the overlays, which freezes the files below. The engine
   reflinks or copies the disks of a VMM that can't freeze them.
5. `SavesState.save_vmstate` writes devices and CPUs to a memfd. Saving may change guest RAM, so RAM is
   read only afterwards.
6. The engine lists the pages that differ from the mem-file and copies them out of the VMM's process. No
   request is made for that: `Driver.ram_regions` says where RAM lies.
7. `Vmm.resume` ends the pause. Writing the pages, fsync and publishing follow.

A failure after step 3 resumes the guest. `FreezesDisks.active_files` says which disks were switched, and
`FreezesDisks.drop_overlays` closes the other overlays. A capture for a template or a standby skips steps 1, 4
and 7: the guest stays paused, its pages go straight to the disk, and `Vmm.kill` ends the VMM.

**A restore** (`ramet.engine.restore`) is the same for a fork, a restore and a rewind:

1. The engine links the parts of the capture into a new directory, and compares them with the manifest.
2. `Driver.restore` starts a VMM in that directory, with RAM mapped from the mem-file and the guest paused.
   A VMM that `StartsEmpty.start_empty` started earlier gets its guest by `StartsEmpty.attach_guest`.
3. With `Ability.LOADS_DELTA_BEFORE_VMSTATE`, the engine writes the delta into the VMM's memory now.
4. `Vmm.load_vmstate` loads devices and CPUs. The guest stays paused.
   A VMM that `LoadsDelta` gets the delta in the same request, and step 5 is skipped.
5. Without either, the engine writes the delta now.
6. `Vmm.resume` lets the guest run. `ResumesOnLoad.load_and_resume` does steps 4 and 6 in one request if
   nothing is to be written in step 5.
7. The guest's agent proves the guest's identity. No request goes to the VMM.

A failure in step 2 leaves no process. After a later failure the engine calls `Vmm.kill`, and the capture is
as before.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from ramet.model.record import DeltaRun, Disk, Guest, Machine, ProcessRef, RamRegion
from ramet.system.pause_watchdog import ResumeSteps


class Ability(StrEnum):
    """A VMM's ability that ramet depends on somewhere."""

    MAPS_PRIVATELY = "maps the mem-file privately on restore"
    OPENS_MEM_FILE_READ_ONLY = "opens the mem-file read-only"
    BOOTS_ON_MEM_FILE = "boots on a mem-file, mapped privately"
    LOADS_DELTA_BEFORE_VMSTATE = "has RAM mapped before it loads vmstate"  # else a delta comes after that
    EMULATES = "runs guests without KVM"
    BOOTS_BARE_METAL = "boots guests without firmware or PCI"
    OVERRIDES_NETWORK = "takes other network devices on restore"
    OVERRIDES_VSOCK = "takes another vsock socket on restore"
    GIVES_GENERATION_ID = "gives a guest a VMGenID, another one on each restore"


class Ending(StrEnum):
    """The way in which a VMM ended, as far as its log tells."""

    POWERED_OFF = "the guest powered off"
    REBOOTED = "the guest rebooted"
    CRASHED = "the guest's machine was reset, and the guest hadn't asked for that"
    ASKED = "the VMM was asked to quit"
    DIED = "the VMM died"


class Standing(NamedTuple):
    """The knowledge about a VMM's version.

    `is_run` says that ramet's tests were run with it, `words` is for people, `advice` helps with a fault of
    that version, if it has one. `why_unusable` says what keeps every guest of it from running on this
    machine.
    """

    is_run: bool
    words: str
    advice: str | None = None
    why_unusable: str | None = None


class Vmm(Protocol):
    """A VMM process that is there and can be talked to, by this ramet process or any other."""

    @property
    def process(self) -> ProcessRef:
        """The VMM's process."""

    def session(self) -> AbstractAsyncContextManager[None]:
        """Lease the VMM's control socket for all requests of this task inside the block.

        Sessions nest. Other tasks and processes wait meanwhile, so a session must not wait for another task's
        request to this VMM. Each call keeps its own limit; the whole session has a limit of a minute and
        more, by the size of RAM. Entering raises `VmmTimeoutError`, on QEMU also `VmmError`. When the whole
        takes too long, the block is cancelled, can still use the lease to clean up, and leaving raises
        `VmmTimeoutError`.
        """

    def resume_steps(self) -> ResumeSteps:
        """Return what `system.pause_watchdog` sends to the control socket to resume the guest.

        Makes no request.
        """

    async def status(self) -> str:
        """Return the VMM's own word for its run state.

        Raises `VmmError` when the VMM is gone, `VmmTimeoutError` when it hangs.
        """

    async def pause(self) -> None:
        """Stop the virtual CPUs. On an error the guest may be running or paused: `status` tells."""

    async def resume(self) -> None:
        """Let the virtual CPUs run. Where a VMM's release needs that, its guest's connections are cut."""

    async def load_vmstate(self, name: str) -> None:
        """Load device and CPU state into a VMM made by `Driver.restore`.

        The guest stays paused. On an error the VMM is useless: kill it.
        """

    async def kill(self) -> None:
        """End the VMM at once and wait until it is gone."""


@runtime_checkable
class SavesState(Protocol):
    """A VMM that saves device and CPU state without RAM, or with little RAM, which is thrown away."""

    async def save_vmstate(self, vmstate_fd: int) -> None:
        """Write device and CPU state to the *empty* file that this process has open at `vmstate_fd`.

        The file may be a memfd. The guest is paused before and after. Saving may itself change guest RAM, so
        read RAM afterwards. A file that isn't empty is refused, because a link may make it another
        instance's. The VMM opens the file through `/proc`, so the file needs no name, but the VMM has to be
        of this process's user. Raises `VmmError`; the file's content is no vmstate then.
        """


@runtime_checkable
class TellsVersion(Protocol):
    """A VMM that can be asked for its own version. The program may be another one by now."""

    async def own_version(self) -> str:
        """Return the version of the running process, as `Driver.version`; empty if it doesn't tell.

        Raises as `Vmm.status`.
        """


@runtime_checkable
class ResumesOnLoad(Protocol):
    """A VMM that loads a vmstate and resumes the guest in one request."""

    async def load_and_resume(self, name: str) -> None:
        """Load a vmstate and resume the guest in one request. Errors as `load_vmstate`.

        Only for a guest whose RAM is complete: there is no moment in between at which a delta could be
        written.
        """


@runtime_checkable
class LoadsDelta(Protocol):
    """A VMM that writes a delta into guest RAM itself, with the load, before its devices look at RAM.

    The load maps RAM, so ramet can't write the delta before the load. After the load is too late, because the
    devices have read the indexes of their queues from RAM.
    """

    async def load_with_delta(
        self, name: str, delta_fd: int, runs: Sequence[DeltaRun], *, resume: bool
    ) -> None:
        """Load a vmstate over the mem-file and a delta, and resume the guest if `resume` says so.

        `runs` are the delta's, ascending, and `delta_fd` has their data. It stays open during the call, and
        isn't written to. The delta's pages become the VMM's own. Errors as `Vmm.load_vmstate`.
        """


@runtime_checkable
class SavesSnapshot(Protocol):
    """A VMM that can save all of guest RAM itself, for comparison with RAM that is read from outside."""

    async def save_snapshot(self, vmstate: str, mem: str, *, diff: bool = False) -> None:
        """Write state and guest RAM to two *new* files in the instance's directory.

        The guest is paused before and after. `mem` is as long as guest RAM. With `diff` it has only the pages
        that the VMM knows to have changed since its last save, and holes elsewhere; without, all of RAM,
        zeros written out. An existing file of either name is refused. Raises `VmmError`; the files are no
        snapshot then.
        """


@runtime_checkable
class FreezesDisks(Protocol):
    """A VMM that can put its disks' files under new files while it lives, which freezes them.

    A pair is a disk before and after: the second has as `file` a new overlay, an empty qcow2 in the directory
    whose header names the present file, and as `backing` the present files.
    """

    async def prepare_overlays(self, pairs: Sequence[tuple[Disk, Disk]]) -> None:
        """Have the VMM open the overlays, before the pause. The guest keeps running on its present disks.

        A chain that is being shortened stays as long as it was. Raises `VmmError`; no overlay is open then.
        """

    async def switch_overlays(self, pairs: Sequence[tuple[Disk, Disk]]) -> None:
        """Switch writes to the overlays, of a paused guest: for all disks or, on an error, for none.

        The files beneath are flushed to the host, opened for reading alone, and never written again. After a
        `VmmTimeoutError`, `active_files` tells whether the switch was made.
        """

    async def drop_overlays(self, pairs: Sequence[tuple[Disk, Disk]]) -> None:
        """Have the VMM close open overlays that weren't switched to.

        Raises `VmmError` for an overlay that was switched to.
        """

    async def active_files(self) -> dict[str, str]:
        """Return the file that each disk really writes to, by the disk's name; a record may differ."""


@runtime_checkable
class ShortensDisks(Protocol):
    """A VMM that can shorten the chains of its disks while its guest runs."""

    async def shorten(self, disk: Disk) -> Disk:
        """Shorten a disk's chain, and return the new disk.

        The layers between the lowest file and the active file are copied into the active file. Files beneath
        aren't written. The time is bounded by the disk's size. Takes short leases only, so captures can be
        made meanwhile: a capture cancels the shortening, and the returned disk's chain is as long as before.
        A chain that is longer or shorter on the medium than a record says still reads the same, as long as
        its files exist: they are deleted last. A cancellation ends the VMM's job. Raises `VmmError`; the
        chain is unchanged then.
        """

    async def stop_shortening(self, disk: Disk) -> None:
        """Cancel the shortening of that disk, begun by any process.

        Its chain is valid, and as long as before.

        Does nothing when there is none.
        """


@runtime_checkable
class ResizesDisks(Protocol):
    """A VMM that can give a disk another size while its guest runs."""

    async def grow_disk(self, disk: Disk) -> None:
        """Make a disk as large as `disk.size_bytes`: its file, and what the guest sees.

        `disk.file` is written by this instance alone. A disk that has the size already is left as it is, but
        the guest is told its size again. Raises `VmmError`, `FilesystemError`, `UnavailableError`; the file
        may have the new size then, and the guest doesn't see that: another call continues.
        """


class Driver(Protocol):
    """The adapter of one hypervisor.

    Boot a VM in a `directory` that has a kernel, an initramfs and an empty mem-file:

        driver = Qemu()
        await driver.version()
        machine = driver.machine(accelerator="tcg", memory_bytes=256 << 20, cpus=1)
        vmm = await driver.boot(directory, machine)
        await vmm.pause()
        print(await vmm.status())  # paused
        await vmm.kill()
    """

    @property
    def name(self) -> str:
        """The driver's name, such as `qemu`."""

    @property
    def setting(self) -> str:
        """The environment variable that names another program."""

    @property
    def abilities(self) -> frozenset[Ability]:
        """The abilities of the VMM's version. Await `version` before."""

    @property
    def memory_quantum_bytes(self) -> int:
        """Guest RAM is a multiple of this: the VMM takes no other sizes, or makes something else of them."""

    @property
    def most_cpus(self) -> int:
        """Largest number of virtual CPUs of a guest."""

    async def version(self) -> str:
        """Return the VMM's version, asked of the program once, and again after an upgrade.

        Raises `UnavailableError` when the program is missing or too old.
        """

    def as_of(self, version: str) -> Driver:
        """Return this driver with the abilities, machines and arguments of a VMM of that version. Pure.

        The VMM runs and may have been started before the program was upgraded.
        """

    def takes_vmstate_of(self, version: str) -> bool:
        """Tell whether this VMM loads what a VMM of that version saved. Pure. Await `version` before.

        The driver decides, because hypervisors differ. Releases of QEMU and of Firecracker are compatible
        within a minor number (`versions.is_same_release`), those of Cloud Hypervisor within a major one.
        """

    def standing(self) -> Standing:
        """Return what is known of this VMM's version. Await `version` before."""

    def machine(
        self,
        *,
        accelerator: str,
        memory_bytes: int,
        cpus: int,
        guest: Guest = "linux",
        disk_bytes: tuple[int, ...] = (),
    ) -> Machine:
        """Describe the machine that this driver makes for those sizes.

        The machine has a data disk for each of `disk_bytes`. Its RAM is rounded up to `memory_quantum_bytes`.
        """

    def for_cold_start(self, machine: Machine) -> Machine:
        """Return that machine as this VMM boots it: the instance may have run on another release before.

        Pure. Await `version` before.
        """

    def arguments(self, machine: Machine) -> list[str]:
        """Return the VMM's arguments for that machine. A vmstate fits if they are equal.

        They have everything that the guest sees: device addresses, chains of disks, CPU. Descriptors are
        placeholders. Pure. Await `version` before.
        """

    def ram_regions(self, machine: Machine) -> tuple[RamRegion, ...]:
        """Return where the guest sees its RAM, and where that lies in a mem-file, in the file's order.

        Pure.
        """

    async def boot(self, directory: Path, machine: Machine, *, tag: Path | None = None) -> Vmm:
        """Start a VMM in `directory` whose guest boots from the kernel there. It runs when this returns.

        `tag` is the directory that it belongs to, see `system.spawn.spawn`; by default `directory`. Raises
        `UnavailableError` or `VmmError` with the VMM's last words; no process is left then.
        """

    async def restore(
        self,
        directory: Path,
        machine: Machine,
        *,
        tag: Path | None = None,
        sessions: AsyncExitStack | None = None,
    ) -> Vmm:
        """Start a paused VMM on the mem-file in `directory`, ready for `load_vmstate` or `load_and_resume`.

        With `sessions` the session that waited for the VMM stays open until `sessions` is left, so that the
        next requests need no other. `tag` and errors as for `boot`.
        """

    def attach(
        self, directory: Path, process: ProcessRef, machine: Machine, *, just_loaded: bool = False
    ) -> Vmm:
        """Return the handle of a VMM that was started earlier, perhaps by another process.

        The call doesn't ask whether the VMM lives. `just_loaded` says that its guest is paused since its
        vmstate was loaded.
        """

    def ending(self, directory: Path, *, console_start: int = 0) -> Ending:
        """Tell how the VMM that last worked in `directory` ended, from its log and its guest's console.

        The console's first `console_start` bytes are an earlier VMM's. Call it only after the VMM's end.
        """


@runtime_checkable
class NamesDiskErrors(Protocol):
    """A VMM that says which disks the host has refused to write."""

    async def disk_errors(self) -> dict[str, str]:
        """Return the last error of each disk that had one, by the disk's name: `nospace`, or `failed`.

        Errors count since the guest was resumed, or shortly before. Raises `VmmError`.
        """


@runtime_checkable
class StopsOnWriteErrors(Protocol):
    """A driver whose VMMs pause the guest when the host refuses to write one of its disks."""

    def is_stopped_by_disk(self, directory: Path) -> bool:
        """Tell from the log alone whether the living VMM in `directory` has paused its guest so."""


@runtime_checkable
class StartsEmpty(Protocol):
    """A driver whose VMM can be started before it is known which guest it is for."""

    async def start_empty(self, directory: Path, *, tag: Path | None = None) -> ProcessRef:
        """Start a VMM in `directory` that waits for a guest. `tag` and errors as for `Driver.boot`."""

    async def attach_guest(
        self, directory: Path, process: ProcessRef, machine: Machine, sessions: AsyncExitStack
    ) -> Vmm:
        """Give an empty VMM its guest, from the parts in its directory. Returns what `Driver.restore` does.

        Raises `UnavailableError` for a machine that needs a newly started VMM: the VMM is unchanged then.
        Other errors as `Driver.restore`: no process is left.
        """
