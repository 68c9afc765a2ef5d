"""The record of an instance in the store.

Counts, links, sizes and liveness aren't stored: ramet derives them at each read (I6).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec

from ramet.model.boot import Boot
from ramet.model.container import MainProcess
from ramet.model.lifecycle import Move, State, transition

Guest = Literal["linux", "bare-metal"]
"""The kind of program that boots. It decides about devices, boot arguments and the demands on KVM."""


class ProcessRef(msgspec.Struct, frozen=True):
    """A process that is never confused with a later one.

    The pid is that in the process's own PID namespace. The start time is in clock ticks after boot `boot_id`,
    as the initial time namespace counts them.
    """

    pid: int
    started: int
    boot_id: str
    pid_namespace: int = 0
    """The inode of its PID namespace (namespaces(7)). 0 stands for the reader's own namespace: in records of
    an older ramet, or of a kernel without namespaces.
    """


class Disk(msgspec.Struct, frozen=True, kw_only=True):
    """A writable data disk.

    `file` is a name in the instance's directory. `backing` are the names of the frozen files below it, the
    lowest first. `path` is the mount point of its filesystem in the guest of the built-in image; null without
    a filesystem that ramet made.
    """

    name: str
    file: str
    format: Literal["raw", "qcow2"]
    size_bytes: int
    backing: tuple[str, ...] = ()
    path: str | None = None


class Base(msgspec.Struct, frozen=True, kw_only=True):
    """A read-only device with a part of a container image; the first is the image's own, then its layers'.

    `file` is a name in the instance's directory, a hard link to the image's file. The file has `blocks`
    blocks of 4096 bytes, whose SHA-256 is `digest` (64 hex digits), and one more with a mark that says both.
    `part_digest` is the whole file's digest as a part of a capture (`memory.integrity`), if it is known.
    """

    name: str
    file: str
    blocks: int
    digest: str
    part_digest: str | None = None


class Nic(msgspec.Struct, frozen=True, kw_only=True):
    """A network interface, connected to the TAP device `tap` of the host."""

    name: str
    tap: str
    mac: str


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """The virtual machine that a VMM makes.

    A restored machine is equal to the saved machine, except for the names of files and TAP devices.
    `kernel_arguments` is the guest kernel's command line. `agent_ports` is the number of clients that can
    talk to the agent at once over virtio-serial; 0 stands for vsock. With `track_changes` the VMM keeps its
    own list of changed pages from the beginning. With `metrics` the VMM writes counters every minute.
    `balloon_bytes` is the memory that a balloon takes from the guest at first; null stands for no balloon.
    With `vmgenid` the guest's kernel has a driver for the VMGenID device that the VMM gives it: the kernel
    reseeds its random numbers when it was restored.
    """

    accelerator: str
    machine_type: str
    cpu_model: str
    memory_bytes: int
    cpus: int
    kernel_arguments: str
    agent_ports: int
    disks: tuple[Disk, ...] = ()
    bases: tuple[Base, ...] = ()
    nics: tuple[Nic, ...] = ()
    entropy_device: bool = False
    balloon_bytes: int | None = None
    track_changes: bool = False
    metrics: bool = False
    vmgenid: bool = False


class HostCpu(msgspec.Struct, frozen=True, kw_only=True):
    """The processor of a host, as a guest under KVM sees it."""

    name: str
    kind: str
    """Vendor, family and model."""
    features: tuple[str, ...]

    def missing(self, other: HostCpu) -> str | None:
        """Return the reason why a guest saved here can't run on `other`; None if it can."""
        if self.kind != other.kind:
            return f"it has {other.name or other.kind}"
        lacking = sorted(set(self.features) - set(other.features))
        if lacking:
            return f"its {other.name} lacks {', '.join(lacking[:6])}"
        return None


class RamRange(msgspec.Struct, frozen=True):
    """A part of guest RAM in a VMM's address space.

    It is `length_bytes` long, begins at `host_start`, and lies in a mem-file at `file_offset`.
    """

    host_start: int
    length_bytes: int
    file_offset: int


class RamRegion(msgspec.Struct, frozen=True):
    """A part of guest RAM as the guest sees it.

    It is `length_bytes` long, begins at the guest-physical address `guest_start`, and lies in a mem-file at
    `file_offset`.
    """

    guest_start: int
    length_bytes: int
    file_offset: int


class DeltaRun(NamedTuple):
    """Neighbouring pages of a delta. `data_offset` is where the delta has them; None: they are zeros."""

    file_offset: int
    length_bytes: int
    data_offset: int | None


class RunningVmm(msgspec.Struct, frozen=True, kw_only=True):
    """A VMM that was started for an instance."""

    process: ProcessRef
    mem_device: int
    mem_inode: int
    """The inode of the mem-file that the VMM has mapped. The name may belong to another file now. 0 stands
    for anonymous memory.
    """
    ram: tuple[RamRange, ...] = ()
    """The places of guest RAM right after the start of the VMM. A comparison finds what the VMM maps over a
    part of it later, as for a balloon.
    """
    console_start: int = 0
    """The length of the console's log at the start of this VMM; earlier VMMs wrote what is before."""


Job = Literal[
    "start", "stop", "pause", "resume", "template", "capture", "standby", "restore", "rewind", "resize"
]


class Intent(msgspec.Struct, frozen=True, kw_only=True):
    """A change of an instance that isn't complete.

    If `by` has died, the next ramet process completes or undoes the change.
    """

    what: Job
    by: ProcessRef
    staged: int | None = None
    """The inode of the directory that becomes the instance's. The record already has its VMM."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """An instance in the store."""

    id: str
    name: str
    state: State
    driver: str
    image: str
    machine: Machine
    kernel_version: str
    parent: str | None
    snapshot: str | None = None
    """The id of the snapshot that the instance was forked from."""
    generation: int
    machine_id: str
    """32 hex digits, as in machine-id(5). The instance keeps them when it boots again."""
    created_at: str
    labels: dict[str, str]
    auto_remove: bool
    """True if the instance is removed when it stops (`run --rm`)."""
    owner: ProcessRef | None
    """The ramet process that removes the instance at its end; null for an instance that stays.

    A dead owner's watcher, or the next ramet process, removes the owner's instances.
    """
    image_digest: str | None = None
    """The digest of its container image; null for the built-in images."""
    main: MainProcess | None = None
    """The main process of a container image's instance; null for the built-in images."""
    exit_code: int | None = None
    """The exit code of the last main process that ended, 128 + n for one that signal n ended."""
    boot: Boot | None = None
    """The way in which its guest began to run; null for a fork, and for an instance of an older ramet."""
    pending: Intent | None = None
    vmm: RunningVmm | None = None
    reason: str | None = None

    def moved(self, move: Move, *, vmm: RunningVmm | None = None, reason: str | None = None) -> Record:
        """Return this record after `move`, with the VMM of the new state. Raises `WrongStateError`."""
        state = transition(self.state, move, name=self.name)
        return msgspec.structs.replace(self, state=state, vmm=vmm, reason=reason)


class Unreadable(NamedTuple):
    """A row of the store that can't be decoded, with the values that can still be read.

    The row stays, its name stays taken, and ramet leaves its directory and processes alone.
    """

    id: str
    name: str
    """The id, if the row has no readable name."""
    problem: str
    vmm: ProcessRef | None = None
    """The VMM that the row names, if that can be read."""
