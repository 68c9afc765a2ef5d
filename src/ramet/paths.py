"""The paths of a home. Only this file knows them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

# The names of an instance's files. Every path that a VMM is given is one of these, relative to its working
# directory: a vmstate that embeds a path then means the fork's own file when the fork's VMM loads it.
MEM_FILE = "mem"
VMSTATE_FILE = "vmstate"
KERNEL_FILE = "kernel"
INITRAMFS_FILE = "initramfs"
MANIFEST_FILE = "manifest.json"
DELTA_FILE = "delta"
ORIGIN_FILE = "origin.json"
"""In the directory of an instance that was restored from a capture: the capture's manifest, by a link."""
CONFIRMED_FILE = "confirmed.json"
"""In a capture's directory: facts of parts that were found whole though their facts had changed."""
CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.log"
CONSOLE_LOG = "console.log"
VMM_LOG = "vmm.log"
EVENTS_LOG = "events.log"
LIFECYCLE_LOCK = "lifecycle.lock"
WARM_FILE = "warm.json"
"""In the directory of a warm VMM: its description."""
VSOCK_SOCKET = "vsock.sock"


def agent_socket(number: int) -> str:
    """Return the socket of the agent's virtio-serial port with that number, from 0."""
    return f"agent{number}.sock"


@dataclass(frozen=True)
class Home:
    """A data directory: `RAMET_HOME`."""

    root: Path

    @property
    def database(self) -> Path:
        """The records of all instances."""
        return self.root / "ramet.db"

    @property
    def instances(self) -> Path:
        """The parent of instances' directories, one per instance, named by its id."""
        return self.root / "instances"

    def instance(self, instance_id: str) -> Path:
        """Return the directory of an instance, its VMM's working directory."""
        return self.instances / instance_id

    @property
    def snapshots(self) -> Path:
        """The parent of snapshots' directories, one per snapshot, named by its id."""
        return self.root / "snapshots"

    def snapshot(self, snapshot_id: str) -> Path:
        """Return the directory of a snapshot."""
        return self.snapshots / snapshot_id

    @property
    def boot_snapshots(self) -> Path:
        """The parent of boot snapshots' directories, named by their keys; made with the first one."""
        return self.root / "boot-snapshots"

    def boot_snapshot(self, key: str) -> Path:
        """Return the directory of a boot snapshot."""
        return self.boot_snapshots / key

    @property
    def images(self) -> Path:
        """The place of the library of container images (`images.library`)."""
        return self.root / "images"

    @property
    def staging(self) -> Path:
        """The parent of staged directories, one per instance that is being restored or rewound."""
        return self.root / "staging"

    def staged(self, instance_id: str) -> Path:
        """Return the place of an instance's next working directory, to be exchanged with the present one."""
        return self.staging / instance_id

    @property
    def pool(self) -> Path:
        """The parent of warm VMMs' directories, which exists while a process keeps some.

        `engine.pool` names them.
        """
        return self.root / "pool"

    @property
    def compressing(self) -> Path:
        """The parent of a locked file per capture whose memory is being compressed or unpacked."""
        return self.root / "compressing"

    @property
    def worker_lock(self) -> Path:
        """Held by the home's worker."""
        return self.root / "worker.lock"

    @property
    def import_lock(self) -> Path:
        """Held by an import while it finds out whether the same content is here already."""
        return self.root / "import.lock"

    @property
    def work_to_do(self) -> Path:
        """There while a worker is wanted that hasn't begun."""
        return self.root / "worker.todo"

    @property
    def work_under_way(self) -> Path:
        """A file that exists while a worker works, and after a killed worker."""
        return self.root / "worker.doing"

    @property
    def places(self) -> tuple[Path, ...]:
        """All places of state. Each may be a separate mount."""
        return (
            self.root,
            self.database,
            self.instances,
            self.snapshots,
            self.boot_snapshots,
            self.images,
            self.staging,
            self.pool,
            self.compressing,
        )

    def make(self) -> None:
        """Make the missing directories, readable by their owner alone (I9).

        Raises `OSError` when that can't be done.
        """
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for directory in (self.instances, self.snapshots, self.staging):
            directory.mkdir(mode=0o700, exist_ok=True)
            directory.chmod(0o700)
