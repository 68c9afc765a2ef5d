"""What a driver is: how a VMM is started, asked and ended, whatever its make.

Decisions are made by ability, never by name. What not every VMM can be asked for is a Protocol of its own
(`SavesState`, `ResumesOnLoad`, `FreezesDisks`, `StartsEmpty`); an `Ability` says how it behaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from ramet.model.record import Disk, Guest, Machine, ProcessRef, RamRegion
from ramet.system.pause_watchdog import ResumeSteps


class Ability(StrEnum):
    """What a VMM can do that ramet depends on somewhere."""

    MAPS_PRIVATELY = "maps the mem-file privately on restore"
    OPENS_MEM_FILE_READ_ONLY = "opens the mem-file read-only"
    BOOTS_ON_MEM_FILE = "boots on a mem-file, mapped privately"
    LOADS_DELTA_BEFORE_VMSTATE = "has RAM mapped before it loads vmstate"  # else a delta comes after that
    EMULATES = "runs guests without KVM"
    BOOTS_BARE_METAL = "boots guests without firmware or PCI"
    OVERRIDES_NETWORK = "takes other network devices on restore"
    OVERRIDES_VSOCK = "takes another vsock socket on restore"


class Ending(StrEnum):
    """How a VMM that is gone came to its end, as far as its log tells."""

    POWERED_OFF = "the guest powered off"
    REBOOTED = "the guest rebooted"
    CRASHED = "the guest's machine was reset, and the guest hadn't asked for that"
    ASKED = "the VMM was asked to quit"
    DIED = "the VMM died"


class Standing(NamedTuple):
    """What is known of a VMM's version: `is_run` says that ramet's tests were run with it, `words` is for
    people, `advice` what to do about a fault of its own, if it has one.
    """

    is_run: bool
    words: str
    advice: str | None = None


class Vmm(Protocol):
    """A VMM process that is there and can be talked to, by this ramet process or any other."""

    @property
    def process(self) -> ProcessRef: ...

    def session(self) -> AbstractAsyncContextManager[None]:
        """One lease of the VMM's control socket for everything that this task asks of it inside.

        Sessions nest. Other tasks and processes wait meanwhile, so nothing that asks this VMM in another task
        may be waited for. Each call keeps its own limit; the whole has one of a minute and more, by the size
        of RAM. Entering raises `VmmTimeoutError`, on QEMU also `VmmError`; when the whole takes too long what
        goes on inside is cancelled, can still use the lease to clean up, and leaving raises
        `VmmTimeoutError`.
        """

    def resume_steps(self) -> ResumeSteps:
        """What `system.pause_watchdog` says to the control socket so that the guest goes on. Asks nothing."""

    async def status(self) -> str:
        """The VMM's own word for its run state.

        Raises `VmmError` when it is gone, `VmmTimeoutError` when it hangs.
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
    """A VMM that saves device and CPU state without RAM, or with no more of it than can be thrown away."""

    async def save_vmstate(self, vmstate_fd: int) -> None:
        """Write device and CPU state to the *empty* file that is open at `vmstate_fd` in this process, such
        as a memfd. The guest is paused before and after.

        Saving may itself change guest RAM: look at that afterwards. A file that isn't empty is refused: it
        may be another instance's by a link. The VMM opens it through `/proc`, so it needs no name, but the
        VMM has to be of this process's user. Raises `VmmError`; what is in the file then is no vmstate.
        """


@runtime_checkable
class TellsVersion(Protocol):
    """A VMM that can be asked for its own version. The program may be another one by now."""

    async def own_version(self) -> str:
        """The version of the process that runs, as `Driver.version` has it; empty when it doesn't say. Raises
        as `Vmm.status`.
        """


@runtime_checkable
class ResumesOnLoad(Protocol):
    """A VMM that can be told once to load a vmstate and to resume the guest."""

    async def load_and_resume(self, name: str) -> None:
        """`load_vmstate` and `resume` in one request. Only for a guest whose RAM is complete: there is no
        moment in between at which a delta could be written. Errors as `load_vmstate`.
        """


@runtime_checkable
class SavesSnapshot(Protocol):
    """A VMM that can save all of guest RAM itself: for comparison with what is read from outside."""

    async def save_snapshot(self, vmstate: str, mem: str, *, diff: bool = False) -> None:
        """Write device and CPU state, and guest RAM, to two *new* files in the instance's directory. The
        guest is paused before and after.

        `mem` is as long as guest RAM. With `diff` only the pages that the VMM knows to have changed since it
        last saved are in it, the rest is holes; without, all of RAM is, zeros written out. A file of either
        name that exists is refused. Raises `VmmError`; what is there of the files then is no snapshot.
        """


@runtime_checkable
class FreezesDisks(Protocol):
    """A VMM that can put its disks' files under new ones while it lives, so that they are frozen.

    A pair is a disk as it is, and as it will be: `file` a new overlay, an empty qcow2 in the directory whose
    header names the present file; `backing` the present files.
    """

    async def prepare_overlays(self, pairs: Sequence[tuple[Disk, Disk]]) -> None:
        """Have the VMM open the overlays. Before the pause; the guest runs on, with its disks as they are.

        A chain that is being shortened stays as long as it was. Raises `VmmError`; none is open then.
        """

    async def switch_overlays(self, pairs: Sequence[tuple[Disk, Disk]]) -> None:
        """Let the overlays take the writes from here on: for all disks or, on an error, for none. The guest
        is paused.

        The files beneath are flushed to the host, opened for reading alone, and never written again. After a
        `VmmTimeoutError` `active_files` tells which it was.
        """

    async def drop_overlays(self, pairs: Sequence[tuple[Disk, Disk]]) -> None:
        """Have the VMM close overlays that it has open and that weren't switched to.

        Raises `VmmError` for one that was.
        """

    async def active_files(self) -> dict[str, str]:
        """The file that each disk writes to, by the disk's name: what holds, whatever a record says."""


@runtime_checkable
class ShortensDisks(Protocol):
    """A VMM that can shorten the chains of its disks while its guest runs."""

    async def shorten(self, disk: Disk) -> Disk:
        """Copy what the layers between the lowest file and the active one have into the active one, and wait
        until it is done; the disk as it is then. No file beneath is written.

        Bounded by the disk's size. Takes short leases only, so captures go on meanwhile: one cancels it, and
        the disk that is returned is as long as before. A chain that was longer on the medium than a record
        says, or shorter, still reads the same, as long as the files are there: they go last. Cancelled
        itself, it ends the VMM's job. Raises `VmmError`; the chain is as it was then.
        """

    async def stop_shortening(self, disk: Disk) -> None:
        """Cancel the shortening of that disk, whoever began it. Its chain is valid, and as long as before.

        Nothing happens when there is none.
        """


class Driver(Protocol):
    """The adapter of one hypervisor."""

    @property
    def name(self) -> str: ...

    @property
    def setting(self) -> str:
        """The environment variable that names another program."""

    @property
    def abilities(self) -> frozenset[Ability]: ...

    @property
    def memory_quantum_bytes(self) -> int:
        """Guest RAM is a multiple of this: the VMM takes no other sizes, or makes something else of them."""

    @property
    def most_cpus(self) -> int:
        """How many virtual CPUs a guest can have."""

    async def version(self) -> str:
        """The VMM's version, asked of the program once, and again when it has been upgraded.

        Raises `UnavailableError` when it is missing or too old.
        """

    def as_of(self, version: str) -> Driver:
        """This driver as it is for a VMM of that version, which runs and may have been started before the
        program was upgraded: with that version's abilities, machines and arguments. Pure.
        """

    def standing(self) -> Standing:
        """What is known of this VMM's version. `version` has to have been asked before."""

    def machine(
        self,
        *,
        accelerator: str,
        memory_bytes: int,
        cpus: int,
        guest: Guest = "linux",
        disk_bytes: tuple[int, ...] = (),
    ) -> Machine:
        """The machine that this driver makes for those sizes, with a data disk for each of `disk_bytes`.

        Its RAM is rounded up to `memory_quantum_bytes`.
        """

    def for_cold_start(self, machine: Machine) -> Machine:
        """That machine as this VMM makes it when it boots: an instance may have run on another release
        before. Pure; `version` has to have been asked before.
        """

    def arguments(self, machine: Machine) -> list[str]:
        """All that decides what the guest of that machine sees, as the VMM is told it: device addresses,
        chains of disks, CPU. Descriptors are placeholders. Pure; `version` has to have been asked before.

        A vmstate fits where this is equal.
        """

    def ram_regions(self, machine: Machine) -> tuple[RamRegion, ...]:
        """Where the guest sees its RAM, and where that lies in a mem-file, in the file's order. Pure."""

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
        """Start a VMM in `directory` that waits, paused, for `load_vmstate` or `load_and_resume`: on the
        mem-file there.

        With `sessions` the session in which it was waited for stays open until that is left, so that what is
        said next needs no other. `tag` and errors as for `boot`.
        """

    def attach(
        self, directory: Path, process: ProcessRef, machine: Machine, *, just_loaded: bool = False
    ) -> Vmm:
        """A VMM that was started earlier, perhaps by another process. Doesn't ask whether it lives.

        `just_loaded` says that its guest is paused since its vmstate was loaded.
        """

    def ending(self, directory: Path, *, console_start: int = 0) -> Ending:
        """How the VMM that last worked in `directory` ended, from its log and from its guest's console, whose
        first `console_start` bytes are an earlier VMM's. Only to be asked when it has.
        """


@runtime_checkable
class NamesDiskErrors(Protocol):
    """A VMM that says which disks the host has refused to write."""

    async def disk_errors(self) -> dict[str, str]:
        """The last error of each disk that had one since the guest was resumed, or shortly before, by the
        disk's name: `nospace`, or `failed` for any other. Raises `VmmError`.
        """


@runtime_checkable
class StopsOnWriteErrors(Protocol):
    """A driver whose VMMs pause the guest when the host refuses to write one of its disks."""

    def is_stopped_by_disk(self, directory: Path) -> bool:
        """Whether the living VMM in `directory` has paused its guest so, from its log alone."""


@runtime_checkable
class StartsEmpty(Protocol):
    """A driver whose VMM can be started before it is known which guest it is for."""

    async def start_empty(self, directory: Path, *, tag: Path | None = None) -> ProcessRef:
        """Start a VMM in `directory` that waits for a guest. `tag` and errors as for `Driver.boot`."""

    async def attach_guest(
        self, directory: Path, process: ProcessRef, machine: Machine, sessions: AsyncExitStack
    ) -> Vmm:
        """What `Driver.restore` gives, of an empty VMM and the parts that have been put into its directory.

        Raises `UnavailableError` for a machine that a VMM has to be started for: it is as it was then. Other
        errors as `Driver.restore`: no process is left.
        """
