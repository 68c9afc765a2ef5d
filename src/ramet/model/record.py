"""What the store keeps of an instance.

Counts, links, sizes and liveness aren't kept: they are derived when read (I6).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec

from ramet.model.lifecycle import Move, State, transition

Guest = Literal["linux", "bare-metal"]
"""What kind of program boots: it decides about devices, boot arguments and what KVM has to be able to do."""


class ProcessRef(msgspec.Struct, frozen=True):
    """One process, for ever: its pid in its own PID namespace, and its start time in clock ticks after boot
    `boot_id`, as the initial time namespace counts them.
    """

    pid: int
    started: int
    boot_id: str
    pid_namespace: int = 0
    """The inode of its PID namespace (namespaces(7)). 0: written before this was noted, or by a kernel that
    has none; the reader's own is meant.
    """


class Disk(msgspec.Struct, frozen=True, kw_only=True):
    """A writable data disk. `file` is a name in the instance's directory; `backing` are those of the frozen
    files that it lies over, the lowest first; `path` is where the built-in image's guest has its filesystem
    mounted, or null: then it has none of ours.
    """

    name: str
    file: str
    format: Literal["raw", "qcow2"]
    size_bytes: int
    backing: tuple[str, ...] = ()
    path: str | None = None


class Nic(msgspec.Struct, frozen=True, kw_only=True):
    """A network interface. `tap` is the TAP device of the host that it is connected to."""

    name: str
    tap: str
    mac: str


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """The virtual machine that a VMM is to make. A restored one has to be equal to the one that was saved,
    but for the names of its files and TAP devices.

    `kernel_arguments` is the guest kernel's command line; `agent_ports` is how many clients can talk to its
    agent at once over virtio-serial, 0 where it is reached over vsock. With `track_changes` the VMM keeps its
    own list of changed pages from the beginning, with `metrics` counters of its own, which it writes down
    every minute. `balloon_bytes` is what a balloon takes from the guest at first; null: there is no balloon.
    """

    accelerator: str
    machine_type: str
    cpu_model: str
    memory_bytes: int
    cpus: int
    kernel_arguments: str
    agent_ports: int
    disks: tuple[Disk, ...] = ()
    nics: tuple[Nic, ...] = ()
    entropy_device: bool = False
    balloon_bytes: int | None = None
    track_changes: bool = False
    metrics: bool = False


class HostCpu(msgspec.Struct, frozen=True, kw_only=True):
    """The processor of a host, as a guest that was saved on it under KVM knows it."""

    name: str
    kind: str
    """Vendor, family and model."""
    features: tuple[str, ...]

    def missing(self, other: HostCpu) -> str | None:
        """Why a guest that was saved on this one can't go on on `other`, or None when it can."""
        if self.kind != other.kind:
            return f"it has {other.name or other.kind}"
        lacking = sorted(set(self.features) - set(other.features))
        if lacking:
            return f"its {other.name} lacks {', '.join(lacking[:6])}"
        return None


class RamRange(msgspec.Struct, frozen=True):
    """A part of guest RAM in a VMM's address space: `length_bytes` from `host_start` on, which a mem-file has
    from `file_offset` on.
    """

    host_start: int
    length_bytes: int
    file_offset: int


class RamRegion(msgspec.Struct, frozen=True):
    """A part of guest RAM as the guest sees it: `length_bytes` from the guest-physical `guest_start` on,
    which a mem-file has from `file_offset` on.
    """

    guest_start: int
    length_bytes: int
    file_offset: int


class RunningVmm(msgspec.Struct, frozen=True, kw_only=True):
    """A VMM that was started for an instance."""

    process: ProcessRef
    mem_device: int
    mem_inode: int
    """The mem-file that it has mapped, as `stat` names it, whatever lies under that name now. 0: none, its
    guest's RAM is anonymous memory.
    """
    ram: tuple[RamRange, ...] = ()
    """Where it has its guest's RAM, noted right after it was started: what it later maps over a part of that
    (a balloon does) is found by comparing.
    """
    console_start: int = 0
    """The length that the console's log had by then: what lies before is an earlier VMM's."""


Job = Literal["start", "stop", "pause", "resume", "template", "capture", "standby", "restore", "rewind"]


class Intent(msgspec.Struct, frozen=True, kw_only=True):
    """A change of an instance that is under way.

    When `by` has died, it is finished or undone by the next process.
    """

    what: Job
    by: ProcessRef
    staged: int | None = None
    """The inode of the directory that is to become the instance's: its VMM is the record's already."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One instance as the store keeps it."""

    id: str
    name: str
    state: State
    driver: str
    image: str
    machine: Machine
    kernel_version: str
    parent: str | None
    snapshot: str | None = None
    """The snapshot that it was forked from."""
    generation: int
    machine_id: str
    """32 hex digits, as machine-id(5) has them: the instance's own, the same after a cold start."""
    created_at: str
    labels: dict[str, str]
    auto_remove: bool
    """Remove it once it has stopped (`run --rm`)."""
    owner: ProcessRef | None
    """The ramet process that is to remove it when it leaves, or null: it stays.

    A dead owner's instances are removed by its watcher, or by the next ramet process.
    """
    pending: Intent | None = None
    vmm: RunningVmm | None = None
    reason: str | None = None

    def moved(self, move: Move, *, vmm: RunningVmm | None = None, reason: str | None = None) -> Record:
        """This record after `move`, with the VMM that it then has. Raises `WrongStateError`."""
        state = transition(self.state, move, name=self.name)
        return msgspec.structs.replace(self, state=state, vmm=vmm, reason=reason)


class Unreadable(NamedTuple):
    """A row of the store that can't be read as what it should be, and what can still be told of it.

    The row stays, its name stays taken, and its directory and processes are left alone.
    """

    id: str
    name: str
    """Its id where the row doesn't even tell a name."""
    problem: str
    vmm: ProcessRef | None = None
    """The VMM that it names, where that can be read."""
