"""The JSON shapes of the contract: what `--json` prints, the server will send and Python users hold.

Fields are only ever added. `docs/reference/json.md` is generated from these types.
"""

from typing import Literal

import msgspec

from ramet.model.lifecycle import State
from ramet.surface import exported

ShareMode = Literal["shared", "delta", "reflinked", "copied"]
WarmState = Literal["loaded", "empty"]


@exported
class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """A VM that ramet owns: a record, a directory, perhaps a running VMM."""

    id: str
    name: str
    state: State
    driver: str
    image: str
    pid: int | None
    """The VMM's own process id, or null when it has none."""
    directory: str
    """Absolute."""
    memory_bytes: int
    cpus: int
    parent: str | None
    """The id of what it was forked from, also after that has been removed."""
    snapshot: str | None = None
    """The id of the snapshot that it was forked from, if it was one."""
    forks: int
    """How many instances that still exist were forked from it."""
    created_at: str
    """UTC, ISO 8601."""
    labels: dict[str, str]
    accelerator: str
    """What runs its virtual CPUs: `kvm` or `tcg` (emulation)."""
    kernel_version: str
    generation: int
    """1 for a booted instance; a fork has its parent's plus 1.

    Programs in the guest read it in `/run/ramet/generation`.
    """
    reason: str | None = None
    """Why it failed, when it has; why it is paused, when the host can't write its disk (`io-error`); or why
    it can't be seen from here.
    """
    seen: bool = True
    """False: its VMM, or who is changing it, belongs to another machine or another PID namespace. It is left
    alone, and its state is what its record says.
    """


@exported
class MemoryReceipt(msgspec.Struct, frozen=True, kw_only=True):
    """How one fork came by its memory, and what it holds."""

    mode: ShareMode
    reason: str
    file: str
    """Relative to the fork's directory."""
    inode: int
    links: int
    """Link count of the mem-file when the whole call was done."""
    size_bytes: int
    delta_bytes: int
    pss_bytes: int
    """Proportional set size of the fork's VMM."""
    private_dirty_bytes: int
    """Memory that this fork's VMM alone holds, its emulator included."""
    guest_private_bytes: int
    """The part of it that is guest RAM: the pages this fork has changed."""
    immutability: str = "not known"
    """Who keeps the VMM from writing the shared file: `enforced by the kernel`, or `not enforced by the
    kernel: ` and why, and then ramet alone does. `not known` in a receipt of an older ramet."""


@exported
class DiskReceipt(msgspec.Struct, frozen=True, kw_only=True):
    """How one fork came by a disk."""

    name: str
    mode: ShareMode
    reason: str
    bytes_copied: int
    """With what the capture of a running source copied, once for all forks of the call."""


@exported
class IdentityReceipt(msgspec.Struct, frozen=True, kw_only=True):
    """What the fork's guest answered about itself after its own resume."""

    generation: int
    hostname: str
    machine_id: str
    boot_random: str
    """Hex of 16 bytes from the guest's own generator, drawn after reseeding."""
    clock_error_ms: float
    addresses: list[str]


CompressionState = Literal["raw", "compressing", "compressed"]
"""Of a capture's memory. A compressed one that was forked has a raw file beside it until it is compressed or
decompressed again."""


@exported
class Timings(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds. `total` runs from the call to the guest's proof; the others are its parts. `resume` is
    next to nothing where the VMM was told in one request to load and to resume.
    """

    decompress: float = 0.0
    """Until the raw memory of a compressed source was there; 0 where it was there already."""
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
    """What one fork proves about itself."""

    id: str
    name: str
    parent: str
    pid: int
    directory: str
    memory: MemoryReceipt
    disks: list[DiskReceipt]
    identity: IdentityReceipt
    timings_ms: Timings
    warm: WarmState | None = None
    """What was there of it before it was asked for: its guest, loaded and paused; an empty VMM; null:
    nothing. `spawn` and `load` are what was left to do."""
    ok: Literal[True] = True


@exported
class ErrorShape(msgspec.Struct, frozen=True, kw_only=True):
    """An error as `--json` prints it."""

    code: str
    message: str
    hint: str | None = None


@exported
class ForkFailure(msgspec.Struct, frozen=True, kw_only=True):
    """The place of a fork that failed, in the result of `fork`."""

    name: str
    error: ErrorShape
    ok: Literal[False] = False


@exported
class ForkReport(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one `fork` call: a receipt or a failure for each fork asked for, in order."""

    forks: list[Receipt | ForkFailure]
    wall_ms: float
    saved_bytes: int
    """What copying the mem-file (holes kept) for each fork would have written and this call did not."""


@exported
class UnreadableRecord(msgspec.Struct, frozen=True, kw_only=True):
    """An instance or a snapshot whose record can't be read."""

    kind: Literal["instance", "snapshot"]
    id: str
    name: str
    """Its id where not even the name can be read."""
    directory: str
    """Where its files lie. Absolute."""
    problem: str


class Removed(msgspec.Struct, frozen=True, kw_only=True):
    """The result of `rm`."""

    removed: list[str]


@exported
class GuestProcess(msgspec.Struct, frozen=True, kw_only=True):
    """A command in the guest that the agent started and that still runs."""

    pid: int
    argv: list[str]
    inherited: bool
    """It belongs to a client that is gone: the parent's, after a fork."""
    detached: bool


@exported
class Inspection(Instance, frozen=True, kw_only=True):
    """What `inspect` prints: the instance, and what its VMM and guest say when asked."""

    vmm_status: str | None = None
    """The VMM's own word for its run state, or null when there is no VMM."""
    vmm_version: str | None = None
    compression: CompressionState | None = None
    """Of its memory, where it is a template or in standby."""
    receipt: Receipt | None = None
    processes: list[GuestProcess] | None = None
    """Null when the guest didn't answer in time."""


@exported
class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """One instance's use of the host, measured when asked."""

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
    """An instance and what was forked from it, as `tree` prints them."""

    instance: Instance
    forks: "list[LineageNode]"


# As text it would be looked up in `ramet`, where a class is only once it has been asked for.
LineageNode.__annotations__["forks"] = list[LineageNode]


@exported
class SnapshotInfo(msgspec.Struct, frozen=True, kw_only=True):
    """An immutable, named capture of an instance, which may be gone since."""

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
    """What its parts occupy; those that it shares with others are counted in full."""
    own_bytes: int
    """What goes when it is removed: parts that nobody else has a link to."""
    delta_bytes: int
    """Memory that each fork of it holds by itself, besides what it changes. 0: all of it is shared."""
    forks: int
    """How many instances that still exist were forked from it."""


@exported
class SnapshotPart(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a snapshot."""

    name: str
    size_bytes: int
    allocated_bytes: int
    links: int
    digest: str | None
    """Of the content; of compressed memory, of what it decompresses to."""


@exported
class SnapshotInspection(SnapshotInfo, frozen=True, kw_only=True):
    """What `snapshot inspect` prints: all that is known of it."""

    compression: CompressionState = "raw"

    driver_version: str
    kernel_version: str
    machine_type: str
    cpu_model: str
    arguments: list[str]
    """The whole argument vector of the VMM that fits it, device addresses and all."""
    parent: str | None
    """The id of what its source was forked from."""
    source_state: str | None
    """What its source was doing when it was captured."""
    parts: list[SnapshotPart]


@exported
class PartCheck(msgspec.Struct, frozen=True, kw_only=True):
    """One part of a snapshot, read and checked against its digest."""

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
    """Of zstd; null where it is raw."""
    memory_bytes: int
    """The guest's RAM."""
    raw_bytes: int
    """What its raw file occupies, or did."""
    compressed_bytes: int | None
    """What its compressed file occupies."""
    wall_ms: float


@exported
class PoolEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A warm VMM."""

    id: str
    """The id of the instance that the VMM will become, if a fork claims it."""
    driver: str | None
    """Null while it is being made."""
    stage: WarmState | None
    source: str | None
    """The id of the template or snapshot whose guest is in it."""
    source_name: str | None
    state: Literal["making", "ready", "taken"]
    pid: int | None
    pss_bytes: int | None
    created_at: str | None
    keeper: int
    """The process id of the ramet that keeps it or, once it is taken, has it."""
    seen: bool = True
    """False: that ramet belongs to another machine or another PID namespace."""


@exported
class PoolController(msgspec.Struct, frozen=True, kw_only=True):
    """A ramet process that keeps warm VMMs in this home."""

    pid: int
    warm: int
    """How many it keeps at most."""
    held_back: str | None
    """Why it has fewer than it would like to have, when it has."""
    seen: bool = True
    """False: it belongs to another machine or another PID namespace."""


@exported
class PoolReport(msgspec.Struct, frozen=True, kw_only=True):
    """The warm VMMs of a home, and who keeps them."""

    keepers: list[PoolController]
    entries: list[PoolEntry]
