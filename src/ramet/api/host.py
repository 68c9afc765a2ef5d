"""The Host: a home, opened by this process, without a daemon."""

from __future__ import annotations

import asyncio
import builtins
import os
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import anyio

from ramet import config
from ramet.api.arguments import CHECKS, public
from ramet.api.container_images import ContainerImages
from ramet.api.handles import VM, Snapshot
from ramet.arguments import checked
from ramet.calls import Calls, calls_into_host, require_asyncio
from ramet.concurrency import best_effort, to_completion
from ramet.engine import recovery
from ramet.engine.boot_snapshots import make as boot_snapshots
from ramet.engine.context import Context
from ramet.engine.lifecycle import boot, containers, removal, unreadable
from ramet.engine.lifecycle import describe as lifecycle_describe
from ramet.engine.lifecycle.describe import count_forks, is_shown, to_instance, unreadable_instance
from ramet.engine.lifecycle.state import state_of
from ramet.engine.lifecycle.watch import watch
from ramet.engine.pool import claims
from ramet.engine.pool.controller import MOST_WARM, Controller
from ramet.engine.pool.report import pool_of
from ramet.engine.snapshots.catalog import published, resolve_snapshot
from ramet.engine.snapshots.describe import describe
from ramet.engine.snapshots.transfer import import_file, named_file
from ramet.errors import (
    DamagedError,
    NotFoundError,
    UnseenError,
    UsageError,
    VmmError,
    WrongStateError,
)
from ramet.guest.agent_binary import agent_path, probe_path
from ramet.handles import Handle
from ramet.images.container import container_boot_image
from ramet.images.resolve import resolve_image
from ramet.model.command import Word
from ramet.model.disks import parse_disks
from ramet.model.lineage import forest
from ramet.model.schema import Instance, LineageNode, PoolReport, SnapshotInfo, UnreadableRecord, Usage
from ramet.paths import Home
from ramet.surface import exported
from ramet.system import owners, threads
from ramet.units import parse_size


@exported
@calls_into_host()
class Host(ContainerImages, Handle):
    """This machine, with a home of instances. Use it with `async with`.

    Any number of Hosts, in any number of processes, may have the same home open. At its end the block removes
    the instances that this Host made, unless they were detached. `home` is the directory in `RAMET_HOME`
    unless given. `accel` is `auto` (KVM where it runs Linux, else emulation), `kvm` or `tcg`. With `warm`,
    the Host keeps up to that many VMMs ready for the forks of every process.

    Boot a guest, run a command in it, and branch it twice:

        async with ramet.Host() as host:
            vm = await host.run("builtin", name="agent")
            result = await vm.exec("uname", check=True)
            print(result.text.strip())  # Linux
            branches = await vm.fork(2)
            print([branch.name for branch in branches])  # ['agent-1', 'agent-2']
    """

    @checked(CHECKS)
    def __init__(
        self, home: str | os.PathLike[str] | None = None, *, accel: str = "auto", warm: int = 0
    ) -> None:
        if not 0 <= warm <= MOST_WARM:
            raise UsageError(
                f"{warm} VMMs can't be kept warm: the most is {MOST_WARM}", hint=f"ask for 0 to {MOST_WARM}"
            )
        # Resolved, so that a directory has one name, whichever way one came to it.
        self._home = Home((Path(home) if home is not None else config.home_directory()).resolve())
        self._accel = accel
        self._warm = warm
        self._controller: Controller | None = None
        self._context: Context | None = None
        self._exits = AsyncExitStack()

    @property
    def home(self) -> Path:
        """The data directory."""
        return self._home.root

    async def __aenter__(self) -> Host:
        """Open the home, make it if there is none, and undo the leftovers of killed ramet processes.

        This process's limit on open files is raised as far as allowed. Raises `UnavailableError` when the
        directory can't be written, has too long a path, or is on a filesystem that other machines may see
        (nothing is written then); `StoreError` when its database can't be used; `UsageError` when this Host
        is open already, or where no asyncio event loop runs.
        """
        require_asyncio()
        if self._context is not None:
            raise UsageError("this Host is open already", hint="make another one: `ramet.Host(...)`")
        async with AsyncExitStack() as opening:
            context = await recovery.open_home(self._home, self._accel, opening)
            if self._warm:
                self._controller = Controller(context, self._warm)
                self._controller.start()
            self._exits = opening.pop_all()
            self._context = context
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the Host: end the calls of other tasks with `UsageError`, then remove its instances.

        Everything is done before this returns, also for a cancelled task. A child of the process that opened
        the Host can't close it: that raises `UsageError`, unless an exception is raised already.
        """
        context = self._opened
        if not context.calls.may_leave(kind):
            return
        if not context.calls.loop_has_ended:
            context.calls.require_loop()
        await to_completion(self._leave(context, asyncio.current_task()))

    async def _leave(self, context: Context, leaving: asyncio.Task[Any] | None) -> None:
        try:
            await context.calls.leave(leaving)
            context.agents.close()
            if self._controller is not None:
                await best_effort(self._controller.close())
            unwanted = [record for record in context.store.all() if record.id in context.ours]
            await removal.destroy_all(context, unwanted)
        except BaseException:
            owners.leave_to_watcher(self._home.root)
            raise
        finally:
            self._context = self._controller = None
            await self._exits.aclose()

    @property
    def _opened(self) -> Context:
        if self._context is None:
            raise UsageError("this Host isn't open", hint="use it as `async with ramet.Host() as host:`")
        return self._context

    @property
    def _calls(self) -> Calls:
        return self._opened.calls

    @public
    async def run(
        self,
        image: str = "builtin",
        *,
        name: str | None = None,
        memory: str | int = "256M",
        cpus: int = 1,
        driver: str = "auto",
        disks: Sequence[str | int] = (),
        labels: Mapping[str, str] | None = None,
        auto_remove: bool = False,
        command: Sequence[str] | None = None,
        entrypoint: Sequence[str] | None = None,
        env: Mapping[str, Word] | None = None,
        user: str | int | None = None,
        workdir: str | os.PathLike[str] | None = None,
        stop_signal: str | int | None = None,
        idle: bool = False,
        start_main: bool = True,
        rootfs: str | None = None,
        ca: Sequence[str | os.PathLike[str]] = (),
        pull: Literal["missing", "never", "always"] = "missing",
        platform: str | None = None,
        cold: bool = False,
    ) -> VM:
        """Start an instance of `image`, and return it when its guest has answered.

        The first run of an image in a shape boots a guest, and keeps it as a boot snapshot; all runs of the
        shape are forks of that (`Instance.boot`). With `cold` the instance is booted for itself.

        `image` is `builtin`, `bare` (the image `probe`), or a container image: the name or the digest of one
        in this home, else a reference that a registry is asked for, as `pull` says: if it isn't here,
        `never`, or `always`. A local name is never asked for. `memory` is a size such as `256M` or `2G`, or
        bytes. `driver` is `auto` (Firecracker where there is one and KVM really runs the guest, else QEMU) or
        a driver's name. Each of `disks` adds an empty data disk: a size, or `SIZE:PATH` for a disk with a
        filesystem that is mounted at PATH. With `auto_remove`, the instance is removed when it stops.

        An instance of a container image has a main process, and ends with it (`Instance.exit_code`). It is
        the image's, unless `command` replaces the image's arguments, or `entrypoint` its program (and its
        arguments, too). `env` is added to the image's environment; `user` is a name, a uid or one of the two
        with `:group`; `workdir` is made if it is missing; `stop_signal` ends the main process (`stop`). An
        `idle` guest runs without it until it is stopped, or until `VM.start_main`; without `start_main`, it
        waits for that call, and there has to be something to run. `rootfs` is the place for
        what the guest writes: `disk:SIZE` (by default 10 GiB, of which the file has what was written) or
        `ram:SIZE`. `ca` are PEM files with certificates that the guest trusts. `platform` is a check: only
        this machine's runs.

        Raises `NotFoundError` for an unknown image, `NameTakenError`, `UsageError` (also for an image with
        nothing to run), `UnavailableError`, `VmmError` and `GuestError`; for container images what
        `Host.pull` raises, `DamagedError` for one that isn't whole, and `ExecError`, `ExecNotFoundError` or
        `ExecNotExecutableError` when the main process can't be started. Then nothing of the instance is left.
        """
        context = self._opened
        wishes = containers.Wishes(
            command=command,
            entrypoint=entrypoint,
            env=None if env is None else {name: str(value) for name, value in env.items()},
            user=None if user is None else str(user),
            workdir=None if workdir is None else str(workdir),
            stop_signal=None if stop_signal is None else str(stop_signal),
            idle=idle,
            waits=not start_main,
            rootfs=rootfs,
            ca=tuple(map(str, ca)),
            platform=platform,
        )
        container = None
        if containers.is_built_in(image):
            containers.require_no_wishes(image, wishes)
            resolved = await threads.run(resolve_image, image, agent_path, probe_path)
        else:
            container = await containers.container_of(context, image, wishes, pull=pull)
            resolved = await threads.run(container_boot_image, agent_path)
        wanted = boot.Wanted(
            resolved,
            parse_size(memory),  # a number by now
            cpus=cpus,
            name=name,
            driver_name=driver,
            disks=parse_disks(disks),
            labels=labels or {},
            auto_remove=auto_remove,
            container=container,
        )
        record = await boot.create(context, wanted, partial(boot_snapshots.make, cold=cold))
        context.ours.add(record.id)
        watch(context, record)
        return VM(context, record)

    @public
    async def get(self, reference: str) -> VM:
        """Return the instance that `reference` names.

        The order is: exact name, id, unique first digits of an id (at least 4). Raises `NotFoundError`;
        `UnreadableError` when the record can't be read.
        """
        return VM(self._opened, unreadable.resolve_instance(self._opened, reference))

    @public
    async def snapshot(self, reference: str) -> Snapshot:
        """Return the snapshot that `reference` names.

        A reference is `SOURCE/NAME`, a unique name, an id, or unique first digits of an id. Raises
        `NotFoundError`; `UsageError` when it fits several snapshots.
        """
        return Snapshot(self._opened, resolve_snapshot(self._opened, reference))

    @public
    async def snapshots(
        self, of: str | None = None, *, labels: Mapping[str, str] | None = None
    ) -> builtins.list[SnapshotInfo]:
        """List snapshots, oldest first.

        `of`, a name or an id, selects the snapshots of an instance, which may be removed. `labels` selects
        the snapshots that have all of them. A snapshot that can't be read isn't in the list.
        """
        context = self._opened
        matching = []
        for row in published(context):
            if of is not None and of not in (row.source, row.source_name):
                continue
            if all(row.labels.get(key) == value for key, value in (labels or {}).items()):
                # Removed meanwhile; or its manifest can't be read, which a reference to it reports.
                with suppress(DamagedError, NotFoundError):
                    matching.append(describe(context, row))
        return matching

    @public
    async def import_snapshot(self, file: str | os.PathLike[str], *, name: str | None = None) -> Snapshot:
        """Make a snapshot from a file that `Snapshot.export` wrote. `-` is standard input.

        The identity of a snapshot is its content. If the home has a snapshot of the same source with the same
        content, the result without a `name` is that snapshot, and with a `name` a new one that shares its
        files.

        The file is checked completely before it is used. Raises `DamagedError` for a file that is cut short,
        altered, hostile or newer than this ramet; `NameTakenError`; `FilesystemError`. Then nothing is left.
        """
        made = await import_file(self._opened, named_file(file), name=name)
        claims.expect(self._opened, self._opened.home.snapshot(made.id))
        return Snapshot(self._opened, made)

    @public
    async def list(
        self, *, everything: bool = False, labels: Mapping[str, str] | None = None
    ) -> builtins.list[Instance]:
        """List instances, oldest first; stopped and failed instances only with `everything`.

        `labels` selects the instances that have all of them. An instance whose record can't be read comes
        last, in the state `unreadable`.
        """
        context = self._opened
        records, damaged = context.store.rows()
        forks = count_forks(records)
        actual = [state_of(context, record).record for record in records]
        shown = [
            to_instance(context, record, forks[record.id])
            for record in actual
            if is_shown(record.state, everything=everything)
            and all(record.labels.get(key) == value for key, value in (labels or {}).items())
        ]
        return shown if labels else [*shown, *(unreadable_instance(context, row) for row in damaged)]

    @public
    async def unreadable(self) -> builtins.list[UnreadableRecord]:
        """List the instances and snapshots whose records can't be read: other methods leave them out.

        Nothing changes them. `remove_unreadable` removes one.
        """
        return unreadable.listed(self._opened)

    @public
    async def remove_unreadable(self, reference: str) -> str:
        """Remove an instance or a snapshot whose record can't be read, by name or id, and return its id.

        Its VMM ends and its files are deleted. Raises `NotFoundError` when there is no such record,
        `UnavailableError` when the VMM can't be ended. Then everything is as before.
        """
        return await unreadable.remove(self._opened, reference)

    @public
    async def tree(self) -> builtins.list[LineageNode]:
        """Return all instances as trees of forks."""
        return forest(await self.list(everything=True))

    @public
    async def stats(self) -> builtins.list[Usage]:
        """Measure the resources of each instance that has a VMM.

        An instance that ends meanwhile, or whose VMM can't be seen from here, isn't in the list.
        """
        context = self._opened
        used = []
        for record in context.store.all():
            try:
                used.append(lifecycle_describe.usage(context, state_of(context, record).record))
            except (WrongStateError, VmmError, UnseenError, UsageError):
                continue  # it has no visible VMM, or this ramet has no driver for it
        return used

    @public
    async def pool(self, *, wait: float | None = None) -> PoolReport:
        """List the warm VMMs of this home, and the processes that keep them.

        With `wait`, a Host that keeps VMMs itself first makes all that it can, for up to `wait` seconds.
        """
        if self._controller is not None and wait is not None:
            with anyio.move_on_after(wait):
                await self._controller.until_idle()
        return pool_of(self._opened)
