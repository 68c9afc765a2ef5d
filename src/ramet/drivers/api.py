"""What a driver is: how a VMM is started, asked and ended, whatever its make.

Decisions are made by ability, never by name. An ability that not every VMM has is a Protocol of its own or an
`Ability`.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Protocol, runtime_checkable

from ramet.model.record import Guest, Machine, ProcessRef


class Ability(StrEnum):
    """What a VMM can do that ramet depends on somewhere."""

    MAPS_PRIVATELY = "maps the mem-file privately on restore"
    OPENS_MEM_FILE_READ_ONLY = "opens the mem-file read-only"
    BOOTS_ON_MEM_FILE = "boots on a mem-file, mapped privately"
    SAVES_STATE_WITHOUT_RAM = "saves vmstate without RAM"  # its Vmm is a `SavesState`
    SAVES_STATE_WITH_RAM = "saves vmstate together with RAM"  # its Vmm is a `SavesSnapshot`
    EMULATES = "runs guests without KVM"
    BOOTS_BARE_METAL = "boots guests without firmware or PCI"
    OVERRIDES_NETWORK = "takes other network devices on restore"
    OVERRIDES_VSOCK = "takes another vsock socket on restore"


class Ending(StrEnum):
    """How a VMM that is gone came to its end, as far as its log tells."""

    POWERED_OFF = "the guest powered off"
    REBOOTED = "the guest rebooted"
    ASKED = "the VMM was asked to quit"
    DIED = "the VMM died"


class Vmm(Protocol):
    """A VMM process that is there and can be talked to, by this ramet process or any other."""

    @property
    def process(self) -> ProcessRef: ...

    async def status(self) -> str:
        """The VMM's own word for its run state.

        Raises `VmmError` when it is gone, `VmmTimeoutError` when it hangs.
        """

    async def pause(self) -> None:
        """Stop the virtual CPUs. On an error the guest may be running or paused: `status` tells."""

    async def resume(self) -> None:
        """Let the virtual CPUs run."""

    async def load_vmstate(self, name: str) -> None:
        """Load device and CPU state into a VMM made by `Driver.restore`.

        The guest stays paused. On an error the VMM is useless: kill it.
        """

    async def kill(self) -> None:
        """End the VMM at once and wait until it is gone."""


@runtime_checkable
class SavesState(Protocol):
    """A VMM with `Ability.SAVES_STATE_WITHOUT_RAM`."""

    async def save_vmstate(self, name: str) -> None:
        """Write device and CPU state, without RAM, to a *new* file `name` in the instance's directory. The
        guest is paused before and after.

        A file of that name that exists is refused: it may be another instance's by a link.
        """


@runtime_checkable
class SavesSnapshot(Protocol):
    """A VMM with `Ability.SAVES_STATE_WITH_RAM`."""

    async def save_snapshot(self, vmstate: str, mem: str, *, diff: bool = False) -> None:
        """Write device and CPU state, and guest RAM, to two *new* files in the instance's directory. The
        guest is paused before and after.

        `mem` is as long as guest RAM. With `diff` only the pages that the VMM knows to have changed since it
        last saved are in it, the rest is holes; without, all of RAM is, zeros written out. A file of either
        name that exists is refused. Raises `VmmError`; what is there of the files then is no snapshot.
        """


class Driver(Protocol):
    """The adapter of one hypervisor."""

    @property
    def name(self) -> str: ...

    @property
    def abilities(self) -> frozenset[Ability]: ...

    async def version(self) -> str:
        """The VMM's version, asked of the program once.

        Raises `UnavailableError` when it is missing or too old.
        """

    def machine(
        self,
        *,
        accelerator: str,
        memory_bytes: int,
        cpus: int,
        guest: Guest = "linux",
        disk_bytes: tuple[int, ...] = (),
    ) -> Machine:
        """The machine that this driver makes for those sizes, with a data disk for each of `disk_bytes`."""

    async def boot(self, directory: Path, machine: Machine) -> Vmm:
        """Start a VMM in `directory` whose guest boots from the kernel there. It runs when this returns.

        Raises `UnavailableError` or `VmmError` with the VMM's last words; no process is left then.
        """

    async def restore(self, directory: Path, machine: Machine) -> Vmm:
        """Start a VMM in `directory` that waits, paused, for `load_vmstate`: on the mem-file there.

        Errors as `boot`.
        """

    def attach(self, directory: Path, process: ProcessRef, machine: Machine) -> Vmm:
        """A VMM that was started earlier, perhaps by another process. Doesn't ask whether it lives."""

    def ending(self, directory: Path) -> Ending:
        """How the VMM that last worked in `directory` ended, from its log. Only to be asked when it has."""
