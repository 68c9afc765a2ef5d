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
from ramet.engine.fork import call as forking
from ramet.engine.fork.call import ForkOutcome
from ramet.engine.lifecycle import describe, power, removal
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
    Inspection,
    Instance,
    Receipt,
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
    """One instance. A handle holds no connection; several handles of one instance may be used at once, also
    in several processes.

    Every method raises `NotFoundError` once the instance has been removed.
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
        """What this fork proved about itself when it was made.

        Raises `WrongStateError` for an instance that isn't a fork, or that has been made a template since.
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
        """What `ps` shows of it: from files and pidfds."""
        return self._shown(state_of(self._context, self._record).record)

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
        """What `inspect` shows: its VMM and its guest are asked too.

        One that doesn't answer leaves its part null.
        """
        receipt = None
        with suppress(RametError):  # null is shown: it isn't a fork
            receipt = self.receipt
        return await describe.inspect(self._context, self._record, receipt)

    @public
    async def template(self) -> VM:
        """Make a template of this instance, which runs, is paused or in standby: its VMM ends, its memory is
        kept for forks. Final.

        On a failure it is as it was, and runs if it ran.
        """
        await suspend.promote(self._context, self._record)
        claims.expect(self._context, self.directory)
        return self

    @public
    async def snapshot(self, name: str | None = None, *, labels: Mapping[str, str] | None = None) -> Snapshot:
        """Take a snapshot of this instance, which goes on when it runs; it may also be paused or in standby.

        Without a name one is invented. It stays until it is removed, also when the Host is left. Raises
        `WrongStateError`, `NameTakenError` when it has another of that name, `UnavailableError`,
        `FilesystemError`; nothing of it is left then, and the instance is as it was.
        """
        made = await create.create(self._context, self._record, name=name, labels=dict(labels or {}))
        claims.expect(self._context, self._context.home.snapshot(made.id))
        return Snapshot(self._context, made)

    @public
    async def pause(self) -> None:
        """Stop the virtual CPUs; memory stays. Raises `WrongStateError` unless it runs, `VmmError` or
        `VmmTimeoutError` when its VMM fails: `inspect` then says whether it runs.
        """
        await power.pause(self._context, self._record)

    @public
    async def resume(self) -> Instance:
        """Let a paused instance go on, its clock put right. It is returned as it is then; its `reason` says
        so when its guest didn't take the time.

        Errors as `pause`; `WrongStateError` unless it is paused.
        """
        return self._shown(await power.resume(self._context, self._record))

    @public
    async def standby(self) -> None:
        """Capture this running or paused instance and end its VMM: it uses no memory until `restore`.

        Raises `WrongStateError`, `UnavailableError`, `FilesystemError`; it is as it was then, and runs if it
        ran.
        """
        await suspend.standby(self._context, self._record)

    @public
    async def restore(self) -> None:
        """Bring it back from standby, with a new generation.

        Raises `WrongStateError` unless it is in standby, and what a fork may fail with; it is still in
        standby then.
        """
        watch(self._context, await in_place.restore(self._context, self._record))

    @public
    async def rewind(self, snapshot: str | None = None) -> None:
        """Take it back to a snapshot of itself, the youngest unless one is named: memory and disks are what
        they were then. What has happened since is lost; its commands end.

        Raises `NotFoundError`, `WrongStateError` for a template, and what a fork may fail with; it is as it
        was then.
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
        """Power the guest off; after `timeout` seconds its VMM is killed (None: never). Disks are kept,
        memory is gone.

        One that is paused, or in standby with disks, is brought back first: what it hasn't written yet is in
        its memory. A `timeout` of 0 kills at once. It is returned as it is then; its `reason` says so when
        its VMM was killed: what its guest hadn't synced is lost.

        An instance made with `auto_remove` is removed then. Raises `WrongStateError` for a template and for
        one that is stopped already; what a restore may fail with, and it is in standby then.
        """
        return self._shown(
            await stopping.stop(
                self._context, self._record, limit_s=LONGEST_TIME_LIMIT_S if timeout is None else timeout
            )
        )

    @public
    async def start(self) -> None:
        """Start a stopped instance cold: its identity and disks are kept, its memory is new.

        Raises `WrongStateError` unless it is stopped, and what `Host.run` raises; it is still stopped then.
        """
        await start(self._context, self._record)

    @public
    async def wait(self) -> None:
        """Wait until it doesn't run any more. A guest that reboots goes on running."""
        await wait(self._context, self._record)

    @public
    async def remove(self, *, force: bool = False, lost: bool = False) -> None:
        """Remove it. A running one wants `force`, else `WrongStateError`. Its forks don't notice.

        With `lost` also when its VMM can't be seen from here (`Instance.seen`), because the machine or the
        container where it ran is gone for good; nothing is ended then. Raises `UnseenError` without,
        `UnavailableError` when it is another user's: nothing was removed then. Whatever later step fails, the
        others are taken, and the first error is raised; the next ramet process clears the rest away.
        """
        await removal.remove(self._context, self._record, force=force, lost=lost)

    @public
    async def keep(self) -> VM:
        """Keep this fork of a family: it no longer leaves with its Host, its siblings are removed.

        Whoever made them. Raises the first error of a sibling that couldn't be removed; this one is
        kept all the same. An instance that isn't a fork is just detached.
        """
        record = self._record
        await self.detach()
        if record.parent is not None:
            family = [row for row in self._context.store.all() if row.parent == record.parent]
            await removal.destroy_all(self._context, [record for record in family if record.id != self.id])
        return self

    @public
    async def detach(self) -> VM:
        """Let it live on when the Host that made it is left."""
        self._context.ours.discard(self.id)
        self._context.store.change(self.id, lambda row: msgspec.structs.replace(row, owner=None))
        return self

    @public
    async def stats(self) -> Usage:
        """What it uses of the host now. Raises `WrongStateError` when it has no VMM."""
        return describe.usage(self._context, state_of(self._context, self._record).record)


@exported
@calls_into_host()
class Snapshot(Forkable["VM"], Compressible):
    """One snapshot: immutable, and independent of its source and of its forks.

    Every method raises `NotFoundError` once it has been removed.
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
        """Where its parts and its manifest lie."""
        return self._context.home.snapshot(self.id)

    @public
    async def info(self) -> SnapshotInfo:
        """What `snapshot ls` shows of it. Raises `DamagedError` when its manifest can't be read."""
        return snapshots_describe.describe(self._context, self._record)

    @public
    async def inspect(self) -> SnapshotInspection:
        """All that is known of it: the machine that fits it, its parts and their digests. Errors as
        `info`.
        """
        return snapshots_describe.inspect(self._context, self._record)

    @public
    async def verify(self) -> Verification:
        """Read every part and check it against its digest. A bad one is in the result; nothing is raised for
        it.

        Raises `DamagedError` when the manifest can't be read.
        """
        record = self._record
        parts = await snapshots_verify.verify(self._context, record)
        return Verification(id=self.id, name=self.name, ok=all(part.ok for part in parts), parts=parts)

    @public
    async def export(self, file: str | os.PathLike[str]) -> Exported:
        """Write it to one file, sparse, from which `Host.import_snapshot` makes it again, here or elsewhere.

        `-` is standard output. Raises `DamagedError` when a part isn't as it was published,
        `FilesystemError`; no file is left then.
        """
        record = self._record
        written = await transfer.export_snapshot(self._context, record, transfer.named_file(file))
        return Exported(id=self.id, name=self.name, file=str(file), bytes_written=written)

    @public
    async def remove(self) -> None:
        """Remove it. Its forks don't notice, and neither do other snapshots."""
        if not await catalog.remove(self._context, self._record):
            raise NotFoundError(
                f"snapshot {self.name} is gone", hint="`ramet snapshot ls` lists what there is"
            )
