"""The handle of one instance."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ramet.calls import Calls, calls_into_host
from ramet.engine import (
    compression,
    disk_errors,
    execution,
    freeze,
    hand_out,
    limits,
    measure,
    power,
    removal,
    replace,
    snapshots,
    stopping,
)
from ramet.engine import fork as forking
from ramet.engine.arguments import public
from ramet.engine.boot import start
from ramet.engine.bring_up import ForkOptions
from ramet.engine.compressing import compression_of
from ramet.engine.context import Context
from ramet.engine.fork import ForkOutcome
from ramet.engine.manifest import read_manifest
from ramet.engine.observe import count_forks, instance_fields, observe, to_instance
from ramet.engine.watch import watch
from ramet.errors import RametError, VmmError, WrongStateError
from ramet.guest.client import Process
from ramet.guest.feeding import read_all
from ramet.handles import Handle
from ramet.host.files import filesystem_errors
from ramet.host.follow import follow
from ramet.host.rings import tail, trim
from ramet.model.command import Readable, Word
from ramet.model.exec_result import DEFAULT_MAX_OUTPUT_BYTES, ExecResult
from ramet.model.forks import ForkCall
from ramet.model.lifecycle import State
from ramet.model.record import Record
from ramet.model.shapes import Compression, CompressionState, ForkReport, Inspection, Instance, Receipt, Usage
from ramet.paths import CONSOLE_LOG, VMM_LOG
from ramet.units import LONGEST_TIME_LIMIT_S, MIB

if TYPE_CHECKING:
    from ramet.engine.snapshot import Snapshot

_LOG_BYTES = MIB


@calls_into_host()
class VM(Handle):
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
    def _calls(self) -> Calls:
        return self._context.calls

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
        return self._shown(observe(self._context, self._record).record)

    def _shown(self, record: Record) -> Instance:
        return to_instance(self._context, record, count_forks(self._context.store.all())[self.id])

    @public
    async def inspect(self) -> Inspection:
        """What `inspect` shows: its VMM and its guest are asked too.

        One that doesn't answer leaves its part null.
        """
        context = self._context
        record = await execution.settle(context, self._record)
        fields = instance_fields(context, record, count_forks(context.store.all())[self.id])
        status = version = processes = receipt = None
        if record.vmm is not None:
            try:
                status = await context.vmm(record).status()
            except VmmError as error:
                status = f"unknown: {error.message}"
            if record.state is State.PAUSED and (why := await disk_errors.named(context, record)):
                fields["reason"] = why
            if record.state is State.RUNNING:
                processes = await execution.processes_of(context, record)
        compressed: CompressionState | None = None
        if record.state in {State.TEMPLATE, State.STANDBY}:
            with suppress(RametError):  # null is shown: its manifest can't be read, as its forks are told
                compressed = compression_of(context, self.directory, read_manifest(self.directory))
        with suppress(RametError):  # null is shown: its program isn't there any more
            version = await context.driver(record.driver).version()
        with suppress(RametError):  # null is shown: it isn't a fork
            receipt = self.receipt
        return msgspec.convert(
            {
                **fields,
                "vmm_status": status,
                "vmm_version": version,
                "compression": compressed,
                "receipt": receipt,
                "processes": processes,
            },
            Inspection,
            from_attributes=True,
        )

    @public
    async def exec(
        self,
        *argv: Word,
        stdin: bytes | str | Readable | None = None,
        env: Mapping[str, Word] | None = None,
        cwd: Word | None = None,
        user: str | int | None = None,
        timeout: float | None = None,
        check: bool = False,
        max_output_bytes: int = DEFAULT_MAX_OUTPUT_BYTES,
    ) -> ExecResult:
        """Run a program in the guest to its end.

        Words are text, bytes or paths, as `subprocess` has them. `stdin` is what it reads: bytes, a text, or
        an open file, which is read as it is taken; None: `/dev/null`. `env` is added to the guest's default
        environment, `cwd` is the user's home directory unless given, `user` is `name`, `uid` or `uid:gid`,
        `timeout` is in seconds. Raises `ExecNotFoundError`, `ExecNotExecutableError` or `ExecError` when it
        can't be started; `ExecTimeoutError` when its time runs out (it is killed with its process group
        then); with `check`, `ExecError` when it fails; `GuestError` when it writes more than
        `max_output_bytes` (killed too); `WrongStateError` when the instance doesn't run.
        """
        command = execution.request(
            argv, env=env, cwd=cwd, user=user, timeout_s=timeout, stdin_open=stdin is not None
        )
        result = await execution.execute(
            self._context, self._record, command, stdin=stdin, max_output_bytes=max_output_bytes
        )
        return result.check() if check else result

    @public
    def process(
        self,
        *argv: Word,
        env: Mapping[str, Word] | None = None,
        cwd: Word | None = None,
        user: str | int | None = None,
        timeout: float | None = None,
        stdin: bool = False,
    ) -> AbstractAsyncContextManager[Process]:
        """A program in the guest whose streams are read and written as it runs.

        Leaving the block early kills it.
        """
        command = execution.request(argv, env=env, cwd=cwd, user=user, timeout_s=timeout, stdin_open=stdin)
        return execution.process(self._context, self._record, command)

    @public
    async def spawn(
        self,
        *argv: Word,
        env: Mapping[str, Word] | None = None,
        cwd: Word | None = None,
        user: str | int | None = None,
        console: bool = True,
    ) -> int:
        """Start a program in the guest that nobody waits for, and return its pid there.

        Its output goes to the console, and so into `logs`.
        """
        command = execution.request(argv, env=env, cwd=cwd, user=user, console=console)
        return await execution.spawn(self._context, self._record, command)

    @public
    async def template(self) -> VM:
        """Make a template of this instance, which runs, is paused or in standby: its VMM ends, its memory is
        kept for forks. Final.

        On a failure it is as it was, and runs if it ran.
        """
        await freeze.promote(self._context, self._record)
        hand_out.expect(self._context, self.directory)
        return self

    @public
    async def snapshot(self, name: str | None = None, *, labels: Mapping[str, str] | None = None) -> Snapshot:
        """Take a snapshot of this instance, which goes on when it runs; it may also be paused or in standby.

        Without a name one is invented. It stays until it is removed, also when the Host is left. Raises
        `WrongStateError`, `NameTakenError` when it has another of that name, `UnavailableError`,
        `FilesystemError`; nothing of it is left then, and the instance is as it was.
        """
        from ramet.engine.snapshot import Snapshot

        made = await snapshots.create(self._context, self._record, name=name, labels=dict(labels or {}))
        hand_out.expect(self._context, self._context.home.snapshot(made.id))
        return Snapshot(self._context, made)

    @public
    def fork(
        self,
        count: int = 1,
        *,
        name: str | None = None,
        require_shared: bool = False,
        share_memory: bool = True,
        return_exceptions: bool = False,
        detach: bool = False,
    ) -> ForkCall[VM]:
        """Fork this instance `count` times: `await` it for a list, or use it with `async with`, which removes
        the forks at the end.

        A template, or one in standby, is forked as it is. One that runs is captured first: it stands still
        for some milliseconds and goes on. If some fail, `ForkError` has those that live and why the others
        don't; with `return_exceptions` both come back in order. With `detach` all of them live on when the
        Host is left, as after `VM.detach`: they are detached in the one step that writes them down, and a
        process that is killed before that leaves none of them.
        """
        options = ForkOptions(require_shared=require_shared, share_memory=share_memory)
        return fork_call(
            self._context,
            lambda: forking.fork(
                self._context, self._record, count, name=name, options=options, detach=detach
            ),
            return_exceptions=return_exceptions,
            detach=detach,
        )

    @public
    async def compress(
        self, *, level: int | None = None, progress: Callable[[int, int], object] | None = None
    ) -> Compression:
        """Compress the memory of a template, or of an instance in standby, as `Snapshot.compress`.

        Raises `WrongStateError` if it is neither, or if it is restored or stopped meanwhile; other errors as
        there.
        """
        context = self._context
        return await compression.compress(
            context, compression.of_instance(context, self._record), level, progress
        )

    @public
    async def decompress(self, *, progress: Callable[[int, int], object] | None = None) -> Compression:
        """Make the memory raw again, and remove the compressed file. Nothing happens where it is raw.

        Errors as `compress`.
        """
        context = self._context
        return await compression.decompress(context, compression.of_instance(context, self._record), progress)

    @public
    async def fork_report(
        self,
        count: int = 1,
        *,
        name: str | None = None,
        require_shared: bool = False,
        share_memory: bool = True,
        detach: bool = False,
    ) -> ForkReport:
        """As `fork`, but the contract's report: a receipt or a failure for each fork, in order.

        Nothing is raised for one that fails.
        """
        options = ForkOptions(require_shared=require_shared, share_memory=share_memory)
        outcome = await forking.fork(
            self._context, self._record, count, name=name, options=options, detach=detach
        )
        adopt(self._context, outcome, detach=detach)
        return outcome.report

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
        await freeze.standby(self._context, self._record)

    @public
    async def restore(self) -> None:
        """Bring it back from standby, with a new generation.

        Raises `WrongStateError` unless it is in standby, and what a fork may fail with; it is still in
        standby then.
        """
        watch(self._context, await replace.restore(self._context, self._record))

    @public
    async def rewind(self, snapshot: str | None = None) -> None:
        """Take it back to a snapshot of itself, the youngest unless one is named: memory and disks are what
        they were then. What has happened since is lost; its commands end.

        Raises `NotFoundError`, `WrongStateError` for a template, and what a fork may fail with; it is as it
        was then.
        """
        record = self._record
        chosen = (
            snapshots.latest_of(self._context, record)
            if snapshot is None
            else snapshots.resolve_snapshot(self._context, snapshot, of=record)
        )
        watch(self._context, await replace.rewind(self._context, record, chosen))

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
        await power.wait(self._context, self._record)

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
            family = [one for one in self._context.store.all() if one.parent == record.parent]
            await removal.discard_all(self._context, [one for one in family if one.id != self.id])
        return self

    @public
    async def detach(self) -> VM:
        """Let it live on when the Host that made it is left."""
        self._context.ours.discard(self.id)
        self._context.store.change(self.id, lambda one: msgspec.structs.replace(one, owner=None))
        return self

    @public
    async def stats(self) -> Usage:
        """What it uses of the host now. Raises `WrongStateError` when it has no VMM."""
        return measure.usage(self._context, observe(self._context, self._record).record)

    @public
    async def logs(self, *, vmm: bool = False) -> bytes:
        """The end of the guest's console, or of the VMM's own log.

        What a guest wrote may hold anything: don't send it to a terminal as it is.
        """
        self._context.store.get(self.id)
        path = self.directory / (VMM_LOG if vmm else CONSOLE_LOG)
        with filesystem_errors("read", path):
            trim(path)
            return tail(path, _LOG_BYTES)

    @public
    async def follow_logs(self, *, vmm: bool = False) -> AsyncIterator[bytes]:
        """As `logs`, then what is added, until the instance stops."""
        path = self.directory / (VMM_LOG if vmm else CONSOLE_LOG)
        async with aclosing(follow(path, until=self.wait)) as chunks:
            async for chunk in chunks:
                yield chunk


def fork_call(
    context: Context, make: Callable[[], Awaitable[ForkOutcome]], *, return_exceptions: bool, detach: bool
) -> ForkCall[VM]:
    """A fork that has been asked for, whose forks are to belong to this Host unless `make` detaches them."""

    async def made() -> dict[str, VM | Exception]:
        with context.calls.call():
            outcome = await make()
            adopt(context, outcome, detach=detach)
        return {
            fork.name: VM(context, outcome.records[fork.id], fork)
            if isinstance(fork, Receipt)
            else outcome.errors[fork.name]
            for fork in outcome.report.forks
        }

    async def remove(vms: Iterable[VM]) -> None:
        with context.calls.call():
            ours = {vm.id for vm in vms if not isinstance(vm, Exception)} & context.ours
            await removal.discard_all(context, [one for one in context.store.all() if one.id in ours])

    return ForkCall(made, remove, context.calls, read_all, return_exceptions=return_exceptions)


def adopt(context: Context, outcome: ForkOutcome, *, detach: bool) -> None:
    """Watch the forks while this Host is open. Unless they are detached, they leave with it."""
    for fork in outcome.report.forks:
        if isinstance(fork, Receipt):
            if not detach:
                context.ours.add(fork.id)
            watch(context, outcome.records[fork.id])
