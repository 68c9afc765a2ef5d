"""The JSON shapes of the contract: printed by `--json`, returned by the Python API.

Fields are only ever added. `docs/reference/json.md` is generated from these types.
"""

from typing import Literal

import msgspec

from ramet.model.boot import Boot
from ramet.model.lifecycle import State
from ramet.surface import exported

ShareMode = Literal["shared", "delta", "reflinked", "copied"]
WarmState = Literal["loaded", "empty"]


@exported
class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """A VM that ramet owns: a record, a directory, and a VMM while it runs."""

    id: str
    name: str
    state: State
    driver: str
    image: str
    pid: int | None
    """The process id of the VMM; null without a VMM."""
    directory: str
    """Absolute."""
    memory_bytes: int
    cpus: int
    parent: str | None
    """The id of its source, the instance or snapshot it was forked from, which may be removed since."""
    snapshot: str | None = None
    """The id of the snapshot it was forked from; null for other sources."""
    forks: int
    """The number of existing instances that were forked from it."""
    created_at: str
    """UTC, ISO 8601."""
    labels: dict[str, str]
    accelerator: str
    """The accelerator of the virtual CPUs: `kvm` or `tcg` (emulation)."""
    kernel_version: str
    generation: int
    """1 for a booted instance; the parent's number plus 1 for a fork.

    Programs in the guest read it in `/run/ramet/generation`.
    """
    image_digest: str | None = None
    """The digest of its container image; null for the built-in images."""
    exit_code: int | None = None
    """The exit code of the last main process of a container image's instance, 128 + n for one that signal n
    ended; null before its first end, and for the built-in images.
    """
    boot: Boot | None = None
    """The way in which its guest began to run; null for a fork, and for an instance of an older ramet."""
    reason: str | None = None
    """The reason why the instance failed, why it is paused (`io-error`: the host can't write its disk), or
    why it can't be seen from here.
    """
    seen: bool = True
    """False if its VMM, or the process that changes it, belongs to another machine or another PID namespace.
    ramet then leaves the instance alone and shows the state of its record.
    """


@exported
class MemoryReceipt(msgspec.Struct, frozen=True, kw_only=True):
    """The memory of a fork: how it was made, and its size."""

    mode: ShareMode
    reason: str
    file: str
    """Relative to the fork's directory."""
    inode: int
    links: int
    """The link count of the mem-file at the end of the call."""
    size_bytes: int
    delta_bytes: int
    pss_bytes: int
    """The proportional set size of the fork's VMM."""
    private_dirty_bytes: int
    """The memory that only this fork's VMM holds, its emulator included."""
    guest_private_bytes: int
    """The part of `private_dirty_bytes` that is guest RAM: the pages that this fork changed."""
    immutability: str = "not known"
    """The protection of the shared file: `enforced by the kernel`, or `not enforced by the kernel: ` with the
    reason, in which case only ramet enforces it. `not known` in a receipt of an older ramet."""


@exported
class DiskReceipt(msgspec.Struct, frozen=True, kw_only=True):
    """A disk of a fork, and how it was made."""

    name: str
    mode: ShareMode
    reason: str
    bytes_copied: int
    """Includes the bytes that the capture of a running source copied, once for all forks of the call."""


@exported
class ResizedDisk(msgspec.Struct, frozen=True, kw_only=True):
    """A disk of an instance after `disk resize`."""

    id: str
    name: str
    """The name of the instance."""
    disk: str
    size_bytes: int
    path: str | None
    """The mount point of its filesystem in the guest; null without a filesystem that ramet made."""
    filesystem_bytes: int | None
    """The size of that filesystem; null without one, and for an instance that is stopped: its filesystem
    grows at the next start."""


@exported
class BaseReceipt(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a fork's container image, which no guest writes, and how the fork got it.

    `links` counts all names of the file `inode`: the image's own, and those of instances and snapshots.
    """

    name: str
    mode: ShareMode
    reason: str
    inode: int
    links: int


@exported
class IdentityReceipt(msgspec.Struct, frozen=True, kw_only=True):
    """The identity that the fork's guest reported after its resume."""

    generation: int
    hostname: str
    machine_id: str
    boot_random: str
    """16 bytes from the guest's random generator, drawn after it was reseeded, in hex."""
    clock_error_ms: float
    addresses: list[str]
    vmgenid: bool = False
    """True if the VMM also gave the guest a new VMGenID, and its kernel has the driver: the kernel reseeds
    its random numbers by itself, beside the agent."""


CompressionState = Literal["raw", "compressing", "compressed"]
"""The state of a capture's memory. After a fork, compressed memory has a raw file beside it until it is
compressed or decompressed again."""


@exported
class Timings(msgspec.Struct, frozen=True, kw_only=True):
    """The times of a fork in milliseconds.

    `total` runs from the call to the guest's proof; the other times are parts of it. `resume` is nearly 0
    where one request told the VMM to load and to resume.
    """

    decompress: float = 0.0
    """The time to decompress the source's memory; 0 where the memory is raw."""
    queued: float
    capture: float
    pause: float
    clone: float
    spawn: float
    load: float
    resume: float
    ready: float
    total: float


@exported
class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """The proof of a fork: its memory, its disks, its identity and its times."""

    id: str
    name: str
    parent: str
    pid: int
    directory: str
    memory: MemoryReceipt
    disks: list[DiskReceipt]
    identity: IdentityReceipt
    timings_ms: Timings
    bases: list[BaseReceipt] = []
    """The parts of its container image; empty for the built-in images."""
    warm: WarmState | None = None
    """The VMM that was ready before the call: `loaded` with the paused guest, `empty`, or null for no VMM.
    `spawn` and `load` are the times of the remaining steps."""
    ok: Literal[True] = True


@exported
class ErrorShape(msgspec.Struct, frozen=True, kw_only=True):
    """An error as `--json` prints it."""

    code: str
    message: str
    hint: str | None = None


@exported
class ForkFailure(msgspec.Struct, frozen=True, kw_only=True):
    """A fork that failed, at its place in the result of `fork`."""

    name: str
    error: ErrorShape
    ok: Literal[False] = False


@exported
class ForkReport(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a `fork` call: a receipt or a failure per fork, in order."""

    forks: list[Receipt | ForkFailure]
    wall_ms: float
    saved_bytes: int
    """The bytes that this call didn't write because forks share the mem-file, its holes not counted."""


@exported
class UnreadableRecord(msgspec.Struct, frozen=True, kw_only=True):
    """An instance or a snapshot whose record can't be read."""

    kind: Literal["instance", "snapshot"]
    id: str
    name: str
    """The id, if the name can't be read either."""
    directory: str
    """The directory of its files. Absolute."""
    problem: str


class Removed(msgspec.Struct, frozen=True, kw_only=True):
    """The result of `rm`."""

    removed: list[str]


@exported
class GuestProcess(msgspec.Struct, frozen=True, kw_only=True):
    """A running command that the agent started in the guest."""

    pid: int
    argv: list[str]
    inherited: bool
    """True after a fork for the parent's commands: their client is gone."""
    detached: bool


@exported
class GuestRoot(msgspec.Struct, frozen=True, kw_only=True):
    """The root filesystem of a container image's guest, as the guest sees it."""

    kind: Literal["disk", "ram"]
    """The place of what the guest writes to it."""
    size_bytes: int
    free_bytes: int
    free_files: int | None
    """The number of files that can still be made; null if the guest doesn't tell."""


@exported
class Inspection(Instance, frozen=True, kw_only=True):
    """The result of `inspect`: the instance, and the answers of its VMM and its guest."""

    vmm_status: str | None = None
    """The run state in the VMM's words; null without a VMM."""
    vmm_version: str | None = None
    compression: CompressionState | None = None
    """The state of its memory, if it is a template or in standby."""
    receipt: Receipt | None = None
    processes: list[GuestProcess] | None = None
    """Null when the guest didn't answer in time."""
    root: GuestRoot | None = None
    """Null when the guest didn't answer in time, and for the built-in images."""


@exported
class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """The resources that an instance uses, measured at the call."""

    id: str
    name: str
    cpu_seconds: float
    rss_bytes: int
    pss_bytes: int
    private_dirty_bytes: int
    guest_private_bytes: int
    mem_file_allocated_bytes: int
    mem_file_links: int


@exported
class LineageNode(msgspec.Struct, frozen=True, kw_only=True):
    """An instance and its forks, as `tree` prints them."""

    instance: Instance
    forks: "list[LineageNode]"


# As text it would be looked up in `ramet`, where a class is only once it has been asked for.
LineageNode.__annotations__["forks"] = list[LineageNode]


@exported
class SnapshotInfo(msgspec.Struct, frozen=True, kw_only=True):
    """An immutable, named capture of an instance, which may be removed since."""

    id: str
    name: str
    """Unique among the snapshots of one source."""
    source: str
    """The id of the instance that was captured."""
    source_name: str
    driver: str
    image: str
    directory: str
    """Absolute."""
    memory_bytes: int
    """The guest's RAM."""
    cpus: int
    accelerator: str
    generation: int
    created_at: str
    labels: dict[str, str]
    allocated_bytes: int
    """The space of its parts. Parts shared with other snapshots count in full."""
    own_bytes: int
    """The space that its removal frees: parts without other links."""
    delta_bytes: int
    """The memory that each fork holds in addition to the pages it changes; 0 if all memory is shared."""
    forks: int
    """The number of existing instances that were forked from it."""


@exported
class SnapshotPart(msgspec.Struct, frozen=True, kw_only=True):
    """A file of a snapshot."""

    name: str
    size_bytes: int
    allocated_bytes: int
    links: int
    digest: str | None
    """The digest of the content; for compressed memory, of the decompressed content."""


@exported
class SnapshotInspection(SnapshotInfo, frozen=True, kw_only=True):
    """The result of `snapshot inspect`: all that is known about a snapshot."""

    compression: CompressionState = "raw"

    driver_version: str
    kernel_version: str
    machine_type: str
    cpu_model: str
    arguments: list[str]
    """The whole argument vector of the VMM that can restore it, device addresses included."""
    parent: str | None
    """The id of the source that its source was forked from."""
    source_state: str | None
    """The state of its source at the capture."""
    parts: list[SnapshotPart]


@exported
class PartCheck(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a snapshot, read and checked against its digest."""

    name: str
    ok: bool
    size_bytes: int
    problem: str | None = None


@exported
class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """The result of `snapshot verify`."""

    id: str
    name: str
    ok: bool
    parts: list[PartCheck]


@exported
class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """The result of `snapshot export`."""

    id: str
    name: str
    file: str
    bytes_written: int


@exported
class Compression(msgspec.Struct, frozen=True, kw_only=True):
    """The result of `snapshot compress` and `snapshot decompress`."""

    id: str
    name: str
    compression: Literal["raw", "compressed"]
    level: int | None
    """The level of zstd; null for raw memory."""
    memory_bytes: int
    """The guest's RAM."""
    raw_bytes: int
    """The space of the raw file, at present or before it was removed."""
    compressed_bytes: int | None
    """The space of the compressed file."""
    wall_ms: float


@exported
class PoolEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A warm VMM."""

    id: str
    """The id of the instance that the VMM will become, if a fork claims it."""
    driver: str | None
    """Null while it is being made."""
    warm: WarmState | None = msgspec.field(name="stage")
    """Null while it is being made. `warm` in Python, as in a receipt."""
    source: str | None
    """The id of the template or snapshot whose guest is loaded."""
    source_name: str | None
    state: Literal["making", "ready", "taken"]
    pid: int | None
    pss_bytes: int | None
    created_at: str | None
    controller: int = msgspec.field(name="keeper")
    """The process id of the ramet that keeps the VMM or, if it is taken, uses it. `controller` in Python."""
    seen: bool = True
    """False if that ramet belongs to another machine or another PID namespace."""


@exported
class PoolController(msgspec.Struct, frozen=True, kw_only=True):
    """A ramet process that keeps warm VMMs in this home."""

    pid: int
    warm: int
    """The largest number of VMMs that it keeps."""
    held_back: str | None
    """The reason why it keeps fewer VMMs than it should; null otherwise."""
    seen: bool = True
    """False if it belongs to another machine or another PID namespace."""


@exported
class PoolReport(msgspec.Struct, frozen=True, kw_only=True):
    """The warm VMMs of a home, and the processes that keep them."""

    controllers: list[PoolController] = msgspec.field(name="keepers")
    """`controllers` in Python."""
    entries: list[PoolEntry]
