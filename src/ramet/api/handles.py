"""The handles of an instance and of a snapshot."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from ramet.api.arguments import public
from ramet.api.commands import Commands
from ramet.api.compressible import Compressible
from ramet.api.forkable import Forkable
from ramet.api.logs import Logs
from ramet.calls import calls_into_host
from ramet.engine import limits, stopping
from ramet.engine.capture import suspend
from ramet.engine.context import Context
from ramet.engine.exec import commands
from ramet.engine.fork import call as forking
from ramet.engine.fork.call import ForkOutcome
from ramet.engine.lifecycle import describe, power, removal, resize
from ramet.engine.lifecycle.boot import start
from ramet.engine.lifecycle.describe import count_forks, to_instance
from ramet.engine.lifecycle.state import state_of
from ramet.engine.lifecycle.watch import wait, watch
from ramet.engine.maintenance import compression
from ramet.engine.maintenance.compression import Target
from ramet.engine.pool import claims
from ramet.engine.restore import in_place
from ramet.engine.restore.parts import ForkOptions
from ramet.engine.snapshots import catalog, create, transfer
from ramet.engine.snapshots import compression as snapshots_compression
from ramet.engine.snapshots import describe as snapshots_describe
from ramet.engine.snapshots import verify as snapshots_verify
from ramet.errors import NotFoundError, RametError, WrongStateError
from ramet.model.record import Record
from ramet.model.schema import (
    Exported,
    GuestRoot,
    Inspection,
    Instance,
    Receipt,
    ResizedDisk,
    SnapshotInfo,
    SnapshotInspection,
    Usage,
    Verification,
)
from ramet.model.snapshot import SnapshotRecord
from ramet.surface import exported
from ramet.units import LONGEST_TIME_LIMIT_S


@exported
@calls_into_host()
class VM(Forkable["VM"], Compressible, Commands, Logs):
    """The handle of an instance.

    A handle holds no connection. Several handles of an instance may be used at once, also in several
    processes. Every method raises `NotFoundError` after the removal of the instance.

    Take a snapshot, make a mistake, and go back:

        vm = await host.get("agent")
        await vm.exec("sh", "-c", "echo plan-a > /run/notes", check=True)
        await vm.snapshot("before")
        await vm.exec("rm", "/run/notes", check=True)
        await vm.rewind("before")
        result = await vm.exec("cat", "/run/notes", check=True)
        print(result.text.strip())  # plan-a
    """

    def __init__(self, context: Context, record: Record, receipt: Receipt | None = None) -> None:
        self._context = context
        self.id = record.id
        self.name = record.name
        self._receipt = receipt

    def __repr__(self) -> str:
        return f"<VM {self.name} {self.id}>"

    @property
    def _record(self) -> Record:
        return self._context.store.get(self.id)

    @property
    def directory(self) -> Path:
        """The instance's directory on the host."""
        return self._context.home.instance(self.id)

    @property
    def receipt(self) -> Receipt:
        """The receipt of this fork: the proof of its memory, disks and identity.

        Raises `WrongStateError` for an instance that isn't a fork, or that became a template.
        """
        if self._receipt is None:
            self._context.calls.require_open()
            kept = self._context.store.receipt(self.id)
            # Where it lies now: a home may have been moved.
            self._receipt = kept and msgspec.structs.replace(kept, directory=str(self.directory))
        if self._receipt is None:
            raise WrongStateError(f"{self.name} has no receipt: only a fork has")
        return self._receipt

    @public
    async def info(self) -> Instance:
        """Return the description that `ps` shows, from files and pidfds.

        Of an instance with `auto_remove` that has ended while this Host was open it is the last one.
        """
        try:
            record = self._record
        except NotFoundError:
            if (last := self._context.ended.get(self.id)) is None:
                raise
            return self._shown(last)
        return self._shown(state_of(self._context, record).record)

    async def _forked(
        self, count: int, name: str | None, options: ForkOptions, *, detach: bool
    ) -> ForkOutcome:
        return await forking.fork(
            self._context, self._record, count, name=name, options=options, detach=detach
        )

    def _handle(self, record: Record, receipt: Receipt) -> VM:
        return VM(self._context, record, receipt)

    def _target(self) -> Target:
        return compression.of_instance(self._context, self._record)

    def _shown(self, record: Record) -> Instance:
        return to_instance(self._context, record, count_forks(self._context.store.all())[self.id])

    @public
    async def inspect(self) -> Inspection:
        """Return everything about the instance, with answers of its VMM and its guest.

        The part of a VMM or a guest that doesn't answer is null.
        """
        receipt = None
        with suppress(RametError):  # null is shown: it isn't a fork
            receipt = self.receipt
        return await describe.inspect(self._context, self._record, receipt)

    @public
    async def template(self) -> VM:
        """Make this instance a template: its VMM ends, and its memory stays for forks.

        The instance is running, paused or in standby. This is final. After a failure the instance is as
        before, and runs if it ran.
        """
        await suspend.promote(self._context, self._record)
        claims.expect(self._context, self.directory)
        return self

    @public
    async def snapshot(self, name: str | None = None, *, labels: Mapping[str, str] | None = None) -> Snapshot:
        """Take a snapshot of this instance, which is running, paused or in standby.

        A running instance is paused for milliseconds, and for longer if it was booted and not restored since.
        Without a `name`, ramet invents one. The snapshot stays until it is removed, also after the Host is
        closed. Raises `WrongStateError`; `NameTakenError` when the instance has another snapshot of that
        name; `UnavailableError`; `FilesystemError`. Then no snapshot is left, and the instance is as before.
        """
        made = await create.create(self._context, self._record, name=name, labels=dict(labels or {}))
        claims.expect(self._context, self._context.home.snapshot(made.id))
        return Snapshot(self._context, made)

    @public
    async def pause(self) -> None:
        """Stop the virtual CPUs. The memory stays in RAM.

        Raises `WrongStateError` unless the instance runs, and `VmmError` or `VmmTimeoutError` when its VMM
        fails: `inspect` then says whether the instance runs.
        """
        await power.pause(self._context, self._record)

    @public
    async def resume(self) -> Instance:
        """Resume this paused instance, correct its clock, and return its description.

        The `reason` in the description says so if the guest didn't accept the time. Errors as `pause`;
        `WrongStateError` unless the instance is paused.
        """
        return self._shown(await power.resume(self._context, self._record))

    @public
    async def standby(self) -> None:
        """Capture this running or paused instance and end its VMM: it uses no RAM until `restore`.

        Raises `WrongStateError`, `UnavailableError`, `FilesystemError`. Then the instance is as before, and
        runs if it ran.
        """
        await suspend.standby(self._context, self._record)

    @public
    async def restore(self) -> None:
        """Restore this instance from standby, with a new generation.

        Raises `WrongStateError` unless the instance is in standby, and the errors of a fork. Then the
        instance is still in standby.
        """
        watch(self._context, await in_place.restore(self._context, self._record))

    @public
    async def rewind(self, snapshot: str | None = None) -> None:
        """Return this instance to one of its snapshots, the latest unless `snapshot` names another.

        Memory and disks become what they were at the snapshot. Everything since is lost, and the commands in
        the guest end. Raises `NotFoundError`, `WrongStateError` for a template, and the errors of a fork.
        Then the instance is as before.
        """
        record = self._record
        chosen = (
            catalog.latest_of(self._context, record)
            if snapshot is None
            else catalog.resolve_snapshot(self._context, snapshot, of=record)
        )
        watch(self._context, await in_place.rewind(self._context, record, chosen))

    @public
    async def stop(self, *, timeout: float | None = limits.STOP_S) -> Instance:
        """Power the guest off, and return the description of the stopped instance.

        Disks are kept; memory is lost. After `timeout` seconds the VMM is killed; 0 kills it at once, None
        never. The `reason` in the description says so if the VMM was killed: data that the guest hadn't
        synced is lost. An instance that is paused, or in standby with disks, is resumed or restored first,
        because its memory holds unwritten data. An instance made with `auto_remove` is removed.

        Raises `WrongStateError` for a template and for a stopped instance; the errors of a restore, after
        which the instance is in standby.
        """
        return self._shown(
            await stopping.stop(
                self._context, self._record, limit_s=LONGEST_TIME_LIMIT_S if timeout is None else timeout
            )
        )

    @public
    async def start(self) -> None:
        """Boot this stopped instance. Its identity and disks are kept; its memory is new.

        Raises `WrongStateError` unless the instance is stopped, and the errors of `Host.run`. Then the
        instance is still stopped.
        """
        await start(self._context, self._record)

    @public
    async def root(self) -> GuestRoot | None:
        """Return the root filesystem of a container image's running guest, as the guest sees it.

        None for the built-in images. Raises as `exec`.
        """
        return await commands.root_of(self._context, self._record)

    @public
    async def resize_disk(self, disk: str, size: str | int) -> ResizedDisk:
        """Make a disk of this running or stopped instance larger, and its filesystem with it.

        `size` is the new size in all, as `20G`. A filesystem that ramet made grows at once, or at the next
        start of a stopped instance. Snapshots that were taken before keep their size; forks that are made
        later have the new size. Raises `UsageError` for a smaller size, `NotFoundError` for a disk that the
        instance doesn't have, `WrongStateError`; `UnavailableError` when the driver can't resize the disk of
        a running guest; `FilesystemError`, `VmmError`. Then the disk has its old size, or the new size on the
        host alone: the same call continues. Raises `GuestError` when the disk is larger and its filesystem
        isn't.
        """
        assert isinstance(size, int)  # `public` has parsed it
        return await resize.resize_disk(self._context, self._record, disk, size)

    @public
    async def wait(self) -> None:
        """Wait until the instance stops. A guest that reboots keeps running.

        `Instance.exit_code` of `info` is then that of a container image's main process.
        """
        await wait(self._context, self._record)

    @public
    async def remove(self, *, force: bool = False, lost: bool = False) -> None:
        """Remove this instance. Its forks keep running.

        Without `force`, a running instance raises `WrongStateError`. With `lost`, an instance is removed even
        if its VMM can't be seen from here (`Instance.seen`), because its machine or container no longer
        exists; no process is ended. Raises `UnseenError` without `lost`, `UnavailableError` for another
        user's instance: nothing is removed then. If a later step fails, the other steps are done and the
        first error is raised; the next ramet process deletes the rest.
        """
        await removal.remove(self._context, self._record, force=force, lost=lost)

    @public
    async def keep(self) -> VM:
        """Keep this fork, detached from its Host, and remove its siblings, made by any process.

        Raises the first error of a sibling that couldn't be removed; this fork is kept all the same. An
        instance that isn't a fork is only detached.
        """
        record = self._record
        await self.detach()
        if record.parent is not None:
            family = [row for row in self._context.store.all() if row.parent == record.parent]
            await removal.destroy_all(self._context, [record for record in family if record.id != self.id])
        return self

    @public
    async def detach(self) -> VM:
        """Detach this instance from the Host that made it, so that it stays when the Host is closed."""
        self._context.ours.discard(self.id)
        self._context.store.change(self.id, lambda row: msgspec.structs.replace(row, owner=None))
        return self

    @public
    async def stats(self) -> Usage:
        """Measure the resources that this instance uses. Raises `WrongStateError` without a VMM."""
        return describe.usage(self._context, state_of(self._context, self._record).record)


@exported
@calls_into_host()
class Snapshot(Forkable["VM"], Compressible):
    """The handle of a snapshot, which is immutable and independent of its source and its forks.

    Every method raises `NotFoundError` after the removal of the snapshot.

    Check a snapshot, and fork it twice:

        snapshot = await host.snapshot("agent/before")
        verification = await snapshot.verify()
        print(verification.ok)  # True
        async with snapshot.fork(2, name="try") as forks:
            print([fork.name for fork in forks])  # ['try-1', 'try-2']
        await snapshot.remove()
    """

    def __init__(self, context: Context, record: SnapshotRecord) -> None:
        self._context = context
        self.id = record.id
        self.name = record.name or record.id

    def __repr__(self) -> str:
        return f"<Snapshot {self.name} {self.id}>"

    @property
    def _record(self) -> SnapshotRecord:
        return catalog.require_published(self._context, self.id)

    async def _forked(
        self, count: int, name: str | None, options: ForkOptions, *, detach: bool
    ) -> ForkOutcome:
        return await forking.fork_snapshot(
            self._context, self._record, count, name=name, options=options, detach=detach
        )

    def _handle(self, record: Record, receipt: Receipt) -> VM:
        return VM(self._context, record, receipt)

    def _target(self) -> Target:
        return snapshots_compression.of_snapshot(self._context, self._record)

    @property
    def directory(self) -> Path:
        """The directory of its parts and its manifest."""
        return self._context.home.snapshot(self.id)

    @public
    async def info(self) -> SnapshotInfo:
        """Return the description that `snapshot ls` shows. Raises `DamagedError` for a bad manifest."""
        return snapshots_describe.describe(self._context, self._record)

    @public
    async def inspect(self) -> SnapshotInspection:
        """Return everything about the snapshot, with its machine, parts and digests. Errors as `info`."""
        return snapshots_describe.inspect(self._context, self._record)

    @public
    async def verify(self) -> Verification:
        """Read every part and check it against its digest.

        A damaged part is reported in the result and raises nothing. Raises `DamagedError` when the manifest
        can't be read.
        """
        record = self._record
        parts = await snapshots_verify.verify(self._context, record)
        return Verification(id=self.id, name=self.name, ok=all(part.ok for part in parts), parts=parts)

    @public
    async def export(self, file: str | os.PathLike[str]) -> Exported:
        """Write the snapshot to a file, which `Host.import_snapshot` reads on this machine or another.

        Zeros take no space in the file. `-` is standard output. Raises `DamagedError` when a part has
        changed, and `FilesystemError`. Then no file is left.
        """
        record = self._record
        written = await transfer.export_snapshot(self._context, record, transfer.named_file(file))
        return Exported(id=self.id, name=self.name, file=str(file), bytes_written=written)

    @public
    async def remove(self) -> None:
        """Remove the snapshot. Its forks keep running, and other snapshots stay usable."""
        if not await catalog.remove(self._context, self._record):
            raise NotFoundError(
                f"snapshot {self.name} is gone", hint="`ramet snapshot ls` lists all snapshots"
            )
